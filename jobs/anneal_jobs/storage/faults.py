"""From botocore's errors to a sentence that names the address and the remedy.

Three outcomes: `FileNotFoundError` (the caller knows which noun is missing), `UserError` (bucket,
credentials, permission: a retry ends the same way), `StorageUnreachableError` (all else).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from anneal_jobs.errors import (
    BUCKET_NOT_FOUND,
    STORAGE_ACCESS_DENIED,
    URI_INVALID,
    StorageUnreachableError,
)
from anneal_jobs.storage.credentials import CredentialsPlace, absent_here, wrong_here
from anneal_jobs.storage.uri import StorageUri
from anneal_pipeline.errors import UserError

_MISSING = {"NoSuchKey", "404", "NotFound"}
_WHY_DENIED = {
    "SignatureDoesNotMatch": "the secret access key is wrong",
    "InvalidAccessKeyId": "the access key id is unknown",
    "ExpiredToken": "the credentials have expired",
    "InvalidToken": "the session token is not valid",
    "AccessDenied": "the credentials do not allow this",
    "Forbidden": "the credentials do not allow this",
    "403": "the credentials are wrong or do not allow this",
    "AllAccessDisabled": "access to this bucket is disabled",
}


@contextmanager
def s3_faults(
    uri: StorageUri, *, doing: str, endpoint: str, credentials: CredentialsPlace | None
) -> Iterator[None]:
    """Translate what botocore raises inside; `doing` is a verb such as 'read'.

    `credentials` None: they are this machine's own.
    """
    try:
        yield
    except ClientError as error:
        raise _of_answer(
            error, uri, doing=doing, endpoint=endpoint, credentials=credentials
        ) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserError(
            STORAGE_ACCESS_DENIED,
            f"Cannot {doing} {uri}: there are no S3 credentials; "
            f"{credentials.absent if credentials else absent_here()}.",
        ) from error
    except ParamValidationError as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise UserError(URI_INVALID, f"Cannot {doing} {uri}: {told}.") from error
    except BotoCoreError as error:
        raise StorageUnreachableError(
            f"Cannot {doing} {uri}: {endpoint} does not answer ({error}); check that the S3 server "
            "runs and that the endpoint is right."
        ) from error


def _of_answer(
    error: ClientError,
    uri: StorageUri,
    *,
    doing: str,
    endpoint: str,
    credentials: CredentialsPlace | None,
) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _MISSING:
        return FileNotFoundError(str(uri))
    if code == "NoSuchBucket":
        return UserError(
            BUCKET_NOT_FOUND,
            f"Cannot {doing} {uri}: bucket '{uri.container}' does not exist at {endpoint}; create "
            "it or correct the address.",
        )
    if code in _WHY_DENIED:
        return UserError(
            STORAGE_ACCESS_DENIED,
            f"Cannot {doing} {uri}: {endpoint} refused it because {_WHY_DENIED[code]} ({code}); "
            f"{credentials.wrong if credentials else wrong_here()}.",
        )
    if code == "InvalidBucketName":
        return UserError(URI_INVALID, f"Cannot {doing} {uri}: '{uri.container}' is no bucket name.")
    return StorageUnreachableError(f"Cannot {doing} {uri}: {endpoint} answered {error}.")
