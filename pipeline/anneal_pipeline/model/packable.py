"""Whether a model keeps rows of one sequence apart: asked of the model, not of a list of names.

transformers separates packed rows where their positions begin anew, but not in every family: ALiBi
counts over the whole sequence, recurrent layers carry their state on, and some attention never
sees the positions. Two rows in one sequence show it: the second must have exactly no gradient with
respect to the first, in any number type, and must come out as it does alone.
"""

from __future__ import annotations

import inspect

import torch
from peft import PeftModel
from torch.utils.hooks import RemovableHandle

from anneal_pipeline.errors import MODEL_UNSUPPORTED, UserError

_FIRST, _SECOND = 4, 8
"""Tokens of the two rows."""
_TOLERANCE = 0.1
"""Relative; 16-bit rounding is far below, positions that do not begin anew are far above."""


def require_packable(model: PeftModel, *, uri: str) -> None:
    """Refuse a model in which a row of a packed sequence would feel the row before it."""
    if not _keeps_apart(model):
        kind = model.get_base_model().config.model_type
        raise UserError(
            MODEL_UNSUPPORTED,
            f"Model {uri} (a {kind}) cannot be trained with training.packing: rows in one sequence "
            "would see each other, since its layers do not start anew where position_ids do; set "
            "training.packing to false",
        )


def _keeps_apart(model: PeftModel) -> bool:
    base = model.get_base_model().base_model
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    ids = torch.arange(2, 2 + _FIRST + _SECOND, device=model.device).unsqueeze(0)
    positions = torch.cat([torch.arange(_FIRST), torch.arange(_SECOND)]).to(model.device)
    was_training = model.training
    model.eval()
    embedded: list[torch.Tensor] = []
    handle = _catch_embeddings(model, embedded)
    try:
        packed = base(input_ids=ids, position_ids=positions.unsqueeze(0), use_cache=False)[0]
    finally:
        handle.remove()
    second = packed[:, _FIRST:]
    [gradient] = torch.autograd.grad(second.float().square().sum(), embedded[0])
    with torch.no_grad():
        alone = base(input_ids=ids[:, _FIRST:], use_cache=False)[0]
    model.train(was_training)
    difference = (second.detach() - alone).float().norm() / alone.float().norm()
    return not gradient[:, :_FIRST].any() and bool(difference < _TOLERANCE)


def _catch_embeddings(model: PeftModel, embedded: list[torch.Tensor]) -> RemovableHandle:
    """Put the embeddings of the next pass into `embedded`, as what its gradients end in."""

    def catch(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    embeddings: torch.nn.Module = model.get_input_embeddings()
    return embeddings.register_forward_hook(catch)
