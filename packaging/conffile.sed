# From the sample to /etc/s3spool/s3spool.toml: the service watches the folder that the package makes.
s|^#directory = "\./tmp"$|directory = "/var/spool/s3spool"|
