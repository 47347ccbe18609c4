"""Whom each error of S3, HTTP and libcurl concerns, and what to do: the one table (docs/errors.md shows it)."""

from __future__ import annotations

from typing import NamedTuple

from s3spool.errors import Scope


class Rule(NamedTuple):
    """How one error is judged; see Scope, and `UploadError.permanent`."""

    scope: Scope
    permanent: bool = False
    hint: str = ""


NETWORK = "check network, DNS, proxy and destination.endpoint_url"
_REPORT = "if it goes on, please report it with the log: this should not occur"
_AGAIN = "it is sent again; if it goes on, look for what alters requests on the way"
_ALTERED = Rule(Scope.UNKNOWN, hint=_AGAIN)
_UNFIT = "the store does not take this file: see the message"
_REFUSED = Rule(Scope.UNKNOWN, permanent=True, hint=_UNFIT)
TRANSIENT = Rule(Scope.UNKNOWN, hint="nothing if it passes; if not, look at the server's state and log")
_SLOW = Rule(Scope.LOAD, hint="it is obeyed; if it lasts, lower upload.workers or add prefixes")
_LINE = Rule(Scope.UNKNOWN, hint=NETWORK)
_OURS = Rule(Scope.UNKNOWN, hint=_REPORT)
_OPTION = Rule(
    Scope.UNKNOWN,
    permanent=True,
    hint="the store does not take this name or content, or not an option of [destination]: see the message",
)
_GRANT = "grant s3:PutObject on this bucket and prefix (`s3spool check --policy` prints a policy)"
_KEYS = "check the credentials boto3 finds: `s3spool check` says where they come from"
_REGION = "set destination.region to the bucket's region"
_ENDPOINT = "correct destination.endpoint_url"
_BUCKET = "correct destination.bucket"
_KMS = "check destination.kms_key_id: the key's state, kind and region"
_CLOCK = "set this machine's clock (timedatectl set-ntp true)"
_ROOM = "make room on the S3 server"


def _at_once(hint: str) -> Rule:
    return Rule(Scope.EVERYBODY, hint=hint)


BY_CODE: dict[str, Rule] = {
    # No file could pass.
    **dict.fromkeys(("AccessDenied", "UnauthorizedAccess"), _at_once(_GRANT)),
    **dict.fromkeys(
        ("AllAccessDisabled", "AccountProblem", "NotSignedUp"), _at_once("ask AWS support about the account")
    ),
    "AccessControlListNotSupported": _at_once("remove destination.acl: the bucket takes no ACLs"),
    **dict.fromkeys(
        (
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
            "InvalidRegion",
            "PermanentRedirect",
            "Redirect",
        ),
        _at_once(_REGION),
    ),
    **dict.fromkeys(
        (
            "CredentialsNotSupported",
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidAccessKeyId",
            "InvalidClientTokenId",
            "InvalidSecurity",
            "InvalidSessionException",
            "InvalidToken",
            "MissingAuthenticationToken",
            "MissingSecurityHeader",
            "NoCredentials",
            "SignatureDoesNotMatch",
            "TokenCodeInvalidError",
            "TokenRefreshRequired",
            "UnrecognizedClientException",
        ),
        _at_once(_KEYS),
    ),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired"), _at_once(_CLOCK)),
    "InvalidBucketName": _at_once(_BUCKET),
    "InvalidBucketState": _at_once("the bucket's state forbids it: look at its settings"),
    "InvalidPayer": _at_once("ask AWS support about the account"),
    "NoSuchBucket": _at_once("create the bucket or correct destination.bucket"),
    **dict.fromkeys(("NoSuchAccessPoint", "InvalidAccessPoint", "InvalidAccessPointAliasError"), _at_once(_BUCKET)),
    **dict.fromkeys(("EndpointNotFound", "InvalidAddressingHeader", "InvalidHostHeader"), _at_once(_ENDPOINT)),
    "MethodNotAllowed": _at_once("correct destination.endpoint_url: this is no S3 server"),
    "NotImplemented": _at_once("the store does not know one of the options in [destination]"),
    "XMinioInsecureClientRequest": _at_once("use https in destination.endpoint_url"),
    "InvalidEncryptionAlgorithmError": _at_once("correct destination.sse"),
    "EncryptionTypeMismatch": _at_once("correct destination.sse"),
    **dict.fromkeys(
        (
            "KMS.DisabledException",
            "KMS.InvalidKeyUsageException",
            "KMS.InvalidStateException",
            "KMS.KMSInvalidStateException",
            "KMS.NotFoundException",
        ),
        _at_once(_KMS),
    ),
    "InvalidStorageClass": _at_once("correct destination.storage_class"),
    "InvalidTag": _at_once("correct [destination.tags]"),
    "MalformedACLError": _at_once("correct destination.acl"),
    "MetadataTooLarge": _at_once("shorten [destination.metadata]"),
    "RequestHeaderSectionTooLarge": _at_once("shorten [destination.metadata] and [destination.tags]"),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioAdminBucketQuotaExceeded"),
        _at_once("make room in the bucket or raise its quota"),
    ),
    **dict.fromkeys(("InsufficientCapacity", "StorageFull", "XMinioStorageFull"), _at_once(_ROOM)),
    # One answer does not tell.
    "TemporaryRedirect": Rule(Scope.UNKNOWN, hint="the bucket is young: DNS has not followed yet"),
    **dict.fromkeys(("BadRequest", "InvalidArgument", "InvalidRequest"), _OPTION),
    **dict.fromkeys(
        (
            "InternalError",
            "InternalFailure",
            "RequestTimeout",
            "RequestTimeoutException",
            "ServiceUnavailable",
            "XMinioServerNotInitialized",
        ),
        TRANSIENT,
    ),
    **dict.fromkeys(
        (
            "BandwidthLimitExceeded",
            "KMS.ThrottlingException",
            "PriorRequestNotComplete",
            "RateLimitExceeded",
            "RequestLimitExceeded",
            "RequestThrottled",
            "RequestThrottledException",
            "SlowDown",
            "SlowDownRead",
            "SlowDownWrite",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "TooManyRequestsException",
        ),
        _SLOW,
    ),
    # Altered or overtaken on the way: better next time.
    **dict.fromkeys(
        (
            "BadDigest",
            "ConditionalRequestConflict",
            "IncompleteBody",
            "InvalidDigest",
            "InvalidPart",
            "InvalidPartOrder",
            "MalformedXML",
            "MissingContentLength",
            "MissingRequestBodyError",
            "NoSuchKey",
            "NoSuchUpload",
            "OperationAborted",
            "PreconditionFailed",
            "UnexpectedContent",
            "XAmzContentChecksumMismatch",
            "XAmzContentSHA256Mismatch",
        ),
        _ALTERED,
    ),
    # S3 will never take this file, it says.
    "EntityTooLarge": Rule(Scope.UNKNOWN, permanent=True, hint="the store takes no object of this size"),
    "KeyTooLongError": Rule(Scope.UNKNOWN, permanent=True, hint="shorten the name or destination.prefix"),
    **dict.fromkeys(
        (
            "EntityTooSmall",
            "InvalidObjectState",
            "InvalidURI",
            "ObjectLocked",
            "TooManyParts",
            "XMinioInvalidObjectName",
            "XMinioObjectExistsAsDirectory",
            "XMinioParentIsObject",
        ),
        _REFUSED,
    ),
}

# S3 itself says more than the status: it has codes for buckets of another region, and for young ones.
_ELSEWHERE = _at_once("correct destination.endpoint_url (http or https?) or destination.region: it redirects elsewhere")
BY_STATUS: dict[int, Rule] = {
    301: _ELSEWHERE,
    302: _ELSEWHERE,
    303: _ELSEWHERE,
    307: _ELSEWHERE._replace(scope=Scope.UNKNOWN),
    308: _ELSEWHERE,
    400: _OPTION,
    401: _at_once(_KEYS),
    402: _at_once("ask the provider about the account"),
    403: _at_once(_GRANT),
    404: _at_once("correct destination.bucket or destination.endpoint_url"),
    405: BY_CODE["MethodNotAllowed"],
    407: _at_once("the proxy wants a password: set HTTPS_PROXY"),
    408: TRANSIENT,
    409: _ALTERED,
    410: _at_once("correct destination.bucket or destination.endpoint_url"),
    411: _ALTERED,
    412: _ALTERED,
    413: Rule(Scope.UNKNOWN, permanent=True, hint="the store or a proxy before it takes no object of this size"),
    414: _REFUSED,
    421: _at_once(_ENDPOINT),
    426: _at_once("use https in destination.endpoint_url"),
    429: _SLOW,
    431: BY_CODE["RequestHeaderSectionTooLarge"],
    501: BY_CODE["NotImplemented"],
    507: _at_once(_ROOM),
    511: _at_once("the network wants a login (a captive portal)"),
}

_TLS = "check the server's certificate and destination.ca_bundle"
_BUILD = "this libcurl lacks what it takes: reinstall pycurl"
# libcurl-errors(3); numbers, because this table is also read where pycurl is missing. Those of other protocols
# than HTTP are left out; numbers newer than this table are transient.
BY_CURL: dict[int, tuple[str, Rule]] = {
    1: ("UNSUPPORTED_PROTOCOL", _LINE),
    2: ("FAILED_INIT", _OURS),
    3: ("URL_MALFORMAT", _at_once(_ENDPOINT)),
    4: ("NOT_BUILT_IN", _at_once(_BUILD)),
    5: ("COULDNT_RESOLVE_PROXY", _at_once("check HTTPS_PROXY")),
    6: ("COULDNT_RESOLVE_HOST", _at_once(NETWORK)),
    7: ("COULDNT_CONNECT", _at_once(NETWORK)),
    8: ("WEIRD_SERVER_REPLY", _LINE),
    16: ("HTTP2", _LINE),
    18: ("PARTIAL_FILE", _LINE),
    22: ("HTTP_RETURNED_ERROR", _OURS),
    23: ("WRITE_ERROR", _OURS),
    25: ("UPLOAD_FAILED", _LINE),
    26: ("READ_ERROR", Rule(Scope.FILE, hint="the file could not be read to its end: it is sent again")),
    27: ("OUT_OF_MEMORY", _at_once("give the service more memory, or lower upload.workers")),
    28: ("OPERATION_TIMEDOUT", _LINE),
    33: ("RANGE_ERROR", _OURS),
    34: ("HTTP_POST_ERROR", _OURS),
    35: ("SSL_CONNECT_ERROR", _at_once(_TLS)),
    36: ("BAD_DOWNLOAD_RESUME", _OURS),
    40: ("LIBRARY_NOT_FOUND", _at_once(_BUILD)),
    41: ("FUNCTION_NOT_FOUND", _at_once(_BUILD)),
    42: ("ABORTED_BY_CALLBACK", Rule(Scope.FILE, hint="the file could not be read to its end: it is sent again")),
    43: ("BAD_FUNCTION_ARGUMENT", _OURS),
    44: ("BAD_CALLING_ORDER", _OURS),
    45: ("INTERFACE_FAILED", _LINE),
    47: ("TOO_MANY_REDIRECTS", _at_once("correct destination.endpoint_url: it redirects elsewhere")),
    48: ("UNKNOWN_OPTION", _at_once(_BUILD)),
    52: ("GOT_NOTHING", _LINE),
    53: ("SSL_ENGINE_NOTFOUND", _at_once(_TLS)),
    54: ("SSL_ENGINE_SETFAILED", _at_once(_TLS)),
    55: ("SEND_ERROR", _LINE),
    56: ("RECV_ERROR", _LINE),
    57: ("SHARE_IN_USE", _OURS),
    58: ("SSL_CERTPROBLEM", _at_once(_TLS)),
    59: ("SSL_CIPHER", _at_once(_TLS)),
    60: ("PEER_FAILED_VERIFICATION", _at_once(_TLS)),
    61: ("BAD_CONTENT_ENCODING", _LINE),
    63: ("FILESIZE_EXCEEDED", _LINE),
    64: ("USE_SSL_FAILED", _at_once(_TLS)),
    65: ("SEND_FAIL_REWIND", _LINE),
    66: ("SSL_ENGINE_INITFAILED", _at_once(_TLS)),
    67: ("LOGIN_DENIED", _at_once(_KEYS)),
    75: ("CONV_FAILED", _OURS),
    76: ("CONV_REQD", _OURS),
    77: ("SSL_CACERT_BADFILE", _at_once(_TLS)),
    80: ("SSL_SHUTDOWN_FAILED", _LINE),
    81: ("AGAIN", _LINE),
    82: ("SSL_CRL_BADFILE", _at_once(_TLS)),
    83: ("SSL_ISSUER_ERROR", _at_once(_TLS)),
    88: ("CHUNK_FAILED", _OURS),
    89: ("NO_CONNECTION_AVAILABLE", _LINE),
    90: ("SSL_PINNEDPUBKEYNOTMATCH", _at_once(_TLS)),
    91: ("SSL_INVALIDCERTSTATUS", _at_once(_TLS)),
    92: ("HTTP2_STREAM", _LINE),
    93: ("RECURSIVE_API_CALL", _OURS),
    94: ("AUTH_ERROR", _at_once(_KEYS)),
    95: ("HTTP3", _LINE),
    96: ("QUIC_CONNECT_ERROR", _LINE),
    97: ("PROXY", _at_once("check HTTPS_PROXY")),
    98: ("SSL_CLIENTCERT", _at_once(_TLS)),
    99: ("UNRECOVERABLE_POLL", _OURS),
    100: ("TOO_LARGE", _LINE),  # a header as long as no server of S3 sends
    101: ("ECH_REQUIRED", _at_once(_TLS)),
}
