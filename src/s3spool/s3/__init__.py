"""All that speaks to S3.

store.py            the bucket as the pipeline sees it: make a request of a file, judge the answer
transport.py        the one act: PUT these bytes there
curl_transport.py   that act through libcurl, the fast way
curl_carrier.py     many of them at once, driven by one thread
patience.py         how long one of them may take
boto3_transport.py  that act through boto3, the way that always works
bounded.py          boto3's answers, but none without an end
client.py           boto3's session and client: region, endpoint, time-outs
apart.py            what a child process works out, so that its memory goes with it
credentials.py      boto3's credential chain, kept fresh
keys.py             from a path to a key
checksums.py        crc64nvme, crc32, sha256, md5
errors.py           every error and whom it concerns
preflight.py        what `s3spool check` asks of the bucket
"""
