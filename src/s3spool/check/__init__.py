"""`s3spool check` and `s3spool service check`: would it work, and what is missing.

`checks` asks this machine, `preflight` and `lifecycle` ask the bucket, `sandbox_check` runs the check as the service.
`iam_policy` prints the least policy; `walk` lists the folder as a scan would; a `CheckResult` is one line.
"""
