"""Where MLflow shows a run."""


def run_page(*, experiment_id: str, run_id: str) -> str:
    """The path of the run's page in MLflow 3.x, to be put behind the server's address.

    Without the view MLflow opens on its pages for prompts and traces, not on runs and models.
    """
    return f"/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
