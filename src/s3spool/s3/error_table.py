"""The table of errors of S3, HTTP and libcurl: scope, permanence and hint of each (docs/errors.md shows it)."""

from __future__ import annotations

from typing import NamedTuple

from s3spool.errors import Scope


class Rule(NamedTuple):
    """What one error means: see `Scope` and `UploadError.permanent`."""

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
_ACCOUNT = "ask AWS support about the account"
_HTTPS = "use https in destination.endpoint_url"
_CLOCK = "set this machine's clock (timedatectl set-ntp true)"
_ROOM = "make room on the S3 server"


def _at_once(hint: str) -> Rule:
    return Rule(Scope.EVERYBODY, hint=hint)


_CODES: tuple[tuple[Rule, str], ...] = (
    # No file could pass.
    (_at_once(_GRANT), "AccessDenied UnauthorizedAccess"),
    (_at_once(_ACCOUNT), "AllAccessDisabled AccountProblem InvalidPayer NotSignedUp"),
    (_at_once("remove destination.acl: the bucket takes no ACLs"), "AccessControlListNotSupported"),
    (
        _at_once(_REGION),
        "AuthorizationHeaderMalformed IllegalLocationConstraintException InvalidRegion PermanentRedirect Redirect",
    ),
    (
        _at_once(_KEYS),
        """
        CredentialsNotSupported ExpiredToken ExpiredTokenException InvalidAccessKeyId InvalidClientTokenId
        InvalidSecurity InvalidSessionException InvalidToken MissingAuthenticationToken MissingSecurityHeader
        NoCredentials SignatureDoesNotMatch TokenCodeInvalidError TokenRefreshRequired UnrecognizedClientException
        """,
    ),
    (_at_once(_CLOCK), "RequestTimeTooSkewed RequestExpired"),
    (_at_once(_BUCKET), "InvalidBucketName NoSuchAccessPoint InvalidAccessPoint InvalidAccessPointAliasError"),
    (_at_once("the bucket's state forbids it: look at its settings"), "InvalidBucketState"),
    (_at_once("create the bucket or correct destination.bucket"), "NoSuchBucket"),
    (_at_once(_ENDPOINT), "EndpointNotFound InvalidAddressingHeader InvalidHostHeader"),
    (_at_once("correct destination.endpoint_url: this is no S3 server"), "MethodNotAllowed"),
    (_at_once("the store does not know one of the options in [destination]"), "NotImplemented"),
    (_at_once(_HTTPS), "XMinioInsecureClientRequest"),
    (_at_once("correct destination.sse"), "InvalidEncryptionAlgorithmError EncryptionTypeMismatch"),
    (
        _at_once("check destination.kms_key_id: the key's state, kind and region"),
        """
        KMS.DisabledException KMS.InvalidKeyUsageException KMS.InvalidStateException
        KMS.KMSInvalidStateException KMS.NotFoundException
        """,
    ),
    (_at_once("correct destination.storage_class"), "InvalidStorageClass"),
    (_at_once("correct [destination.tags]"), "InvalidTag"),
    (_at_once("correct destination.acl"), "MalformedACLError"),
    (_at_once("shorten [destination.metadata]"), "MetadataTooLarge"),
    (_at_once("shorten [destination.metadata] and [destination.tags]"), "RequestHeaderSectionTooLarge"),
    (_at_once("make room in the bucket or raise its quota"), "QuotaExceeded XMinioAdminBucketQuotaExceeded"),
    (_at_once(_ROOM), "InsufficientCapacity StorageFull XMinioStorageFull"),
    # One answer does not tell whom it concerns.
    (Rule(Scope.UNKNOWN, hint="the bucket is young: DNS has not followed yet"), "TemporaryRedirect"),
    (_OPTION, "BadRequest InvalidArgument InvalidRequest"),
    (
        TRANSIENT,
        """
        InternalError InternalFailure RequestTimeout RequestTimeoutException ServiceUnavailable
        XMinioServerNotInitialized
        """,
    ),
    # Too many requests at once.
    (
        _SLOW,
        """
        BandwidthLimitExceeded KMS.ThrottlingException PriorRequestNotComplete RateLimitExceeded
        RequestLimitExceeded RequestThrottled RequestThrottledException SlowDown SlowDownRead SlowDownWrite
        Throttling ThrottlingException TooManyRequests TooManyRequestsException
        """,
    ),
    # The request was altered or overtaken on the way.
    (
        _ALTERED,
        """
        BadDigest ConditionalRequestConflict IncompleteBody InvalidDigest InvalidPart InvalidPartOrder MalformedXML
        MissingContentLength MissingRequestBodyError NoSuchKey NoSuchUpload OperationAborted PreconditionFailed
        UnexpectedContent XAmzContentChecksumMismatch XAmzContentSHA256Mismatch
        """,
    ),
    # S3 says that it will never take this file.
    (Rule(Scope.UNKNOWN, permanent=True, hint="the store takes no object of this size"), "EntityTooLarge"),
    (Rule(Scope.UNKNOWN, permanent=True, hint="shorten the name or destination.prefix"), "KeyTooLongError"),
    (
        _REFUSED,
        """
        EntityTooSmall InvalidObjectState InvalidURI ObjectLocked TooManyParts XMinioInvalidObjectName
        XMinioObjectExistsAsDirectory XMinioParentIsObject
        """,
    ),
)
BY_CODE: dict[str, Rule] = {code: rule for rule, codes in _CODES for code in codes.split()}

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
    426: _at_once(_HTTPS),
    429: _SLOW,
    431: BY_CODE["RequestHeaderSectionTooLarge"],
    501: BY_CODE["NotImplemented"],
    507: _at_once(_ROOM),
    511: _at_once("the network wants a login (a captive portal)"),
}

_TLS = "check the server's certificate and destination.ca_bundle"
_BUILD = "this libcurl lacks what it takes: reinstall pycurl"
# libcurl-errors(3). Numbers, because this table is also read where pycurl is missing. Errors of protocols other than
# HTTP are left out; newer errors are transient.
_CURL: tuple[tuple[Rule, str], ...] = (
    (
        _LINE,
        """
        1:UNSUPPORTED_PROTOCOL 8:WEIRD_SERVER_REPLY 16:HTTP2 18:PARTIAL_FILE 25:UPLOAD_FAILED
        28:OPERATION_TIMEDOUT 45:INTERFACE_FAILED 52:GOT_NOTHING 55:SEND_ERROR 56:RECV_ERROR
        61:BAD_CONTENT_ENCODING 63:FILESIZE_EXCEEDED 65:SEND_FAIL_REWIND 80:SSL_SHUTDOWN_FAILED 81:AGAIN
        89:NO_CONNECTION_AVAILABLE 92:HTTP2_STREAM 95:HTTP3 96:QUIC_CONNECT_ERROR 100:TOO_LARGE
        """,
    ),
    (
        _OURS,
        """
        2:FAILED_INIT 22:HTTP_RETURNED_ERROR 23:WRITE_ERROR 33:RANGE_ERROR 34:HTTP_POST_ERROR
        36:BAD_DOWNLOAD_RESUME 43:BAD_FUNCTION_ARGUMENT 44:BAD_CALLING_ORDER 57:SHARE_IN_USE 75:CONV_FAILED
        76:CONV_REQD 88:CHUNK_FAILED 93:RECURSIVE_API_CALL 99:UNRECOVERABLE_POLL
        """,
    ),
    (_at_once(_ENDPOINT), "3:URL_MALFORMAT"),
    (_at_once(_BUILD), "4:NOT_BUILT_IN 40:LIBRARY_NOT_FOUND 41:FUNCTION_NOT_FOUND 48:UNKNOWN_OPTION"),
    (_at_once("check HTTPS_PROXY"), "5:COULDNT_RESOLVE_PROXY 97:PROXY"),
    (_at_once(NETWORK), "6:COULDNT_RESOLVE_HOST 7:COULDNT_CONNECT"),
    (
        Rule(Scope.FILE, hint="the file could not be read to its end: it is sent again"),
        "26:READ_ERROR 42:ABORTED_BY_CALLBACK",
    ),
    (_at_once("give the service more memory, or lower upload.workers"), "27:OUT_OF_MEMORY"),
    (
        _at_once(_TLS),
        """
        35:SSL_CONNECT_ERROR 53:SSL_ENGINE_NOTFOUND 54:SSL_ENGINE_SETFAILED 58:SSL_CERTPROBLEM 59:SSL_CIPHER
        60:PEER_FAILED_VERIFICATION 64:USE_SSL_FAILED 66:SSL_ENGINE_INITFAILED 77:SSL_CACERT_BADFILE
        82:SSL_CRL_BADFILE 83:SSL_ISSUER_ERROR 90:SSL_PINNEDPUBKEYNOTMATCH 91:SSL_INVALIDCERTSTATUS
        98:SSL_CLIENTCERT 101:ECH_REQUIRED
        """,
    ),
    (_at_once("correct destination.endpoint_url: it redirects elsewhere"), "47:TOO_MANY_REDIRECTS"),
    (_at_once(_KEYS), "67:LOGIN_DENIED 94:AUTH_ERROR"),
)
BY_CURL: dict[int, tuple[str, Rule]] = {
    int(number): (name, rule)
    for rule, errors in _CURL
    for number, _, name in (error.partition(":") for error in errors.split())
}
