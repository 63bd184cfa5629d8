"""Makes the test cluster's certificates with openssl: one authority, everything signed by it.

Keys never leave the state folder, which only its owner can read. A certificate that exists is
kept: its file is written last, so a half-made one is made again.
"""

from dataclasses import dataclass
from pathlib import Path

from commands import Word, run

# A test cluster is thrown away long before this; expiry is not what it is there to test.
_DAYS = "3650"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both PEM files."""

    certificate: Path
    key: Path


def pair_in(folder: Path, name: str) -> Pair:
    """Where the pair of that name lies."""
    return Pair(certificate=folder / f"{name}.crt", key=folder / f"{name}.key")


def make_authority(folder: Path) -> Pair:
    """Make (or return) the authority that signs everything else."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pair = pair_in(folder, "ca")
    if not pair.certificate.exists():
        new_key(pair.key)
        part = pair.certificate.with_suffix(".new")
        usage = "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"
        about = ["-days", _DAYS, "-subj", "/CN=anneal-test-cluster", "-addext", usage]
        run(["openssl", "req", "-x509", "-new", "-key", pair.key, "-out", part, *about])
        part.rename(pair.certificate)
    return pair


def new_key(path: Path) -> None:
    """Write a fresh P-256 key, unless there is one.

    In the older "EC PRIVATE KEY" form: from it the API server also reads the public half.
    """
    if path.exists():
        return
    part = path.with_suffix(".new")
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", part])
    part.chmod(0o600)
    part.rename(path)


def issue(
    name: str, *, subject: str, addresses: tuple[str, ...], folder: Path, authority: Pair
) -> Pair:
    """Make (or return) a certificate for clients, and for servers at `addresses` (DNS or IP)."""
    pair = pair_in(folder, name)
    if pair.certificate.exists():
        return pair
    new_key(pair.key)
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    part = pair.certificate.with_suffix(".new")
    extensions.write_text(_extensions(addresses))
    run(["openssl", "req", "-new", "-key", pair.key, "-subj", subject, "-out", request])
    signer: list[Word] = ["-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial"]
    asked: list[Word] = ["-req", "-in", request, "-days", _DAYS, "-extfile", extensions]
    run(["openssl", "x509", *asked, *signer, "-out", part])
    part.rename(pair.certificate)
    return pair


def _extensions(addresses: tuple[str, ...]) -> str:
    lines = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=clientAuth,serverAuth",
    ]
    if addresses:
        names = ",".join(f"{_kind(address)}:{address}" for address in addresses)
        lines.append(f"subjectAltName={names}")
    return "\n".join(lines) + "\n"


def _kind(address: str) -> str:
    return "IP" if address.replace(".", "").isdigit() else "DNS"
