"""The way of a file, one room a stage.

item.py         what travels: a name, never a content
folder.py       the spool folder, touched safely
hard_links.py   whether only we have touched a file that has other names
names.py        which names are ours (include, exclude)
watch.py        inotify's events become hints
scan.py         walking the folder finds what the events did not tell
settle.py       waiting until a file is left alone
sift.py         what the ledger knows already is not sent again
inbox.py        the bounded queue, each path once
bell.py         how a thread proves that it still goes round
workers.py      the pool of threads, and the gate
wheel.py        small files ride together, one worker drives
cores.py        which CPU the threads share
upload.py       one file's way through a worker
large.py        a large file's way, part by part
parts.py        the parts of large files that wait for a worker
outcome.py      what becomes of a file after its attempt
destination.py  whose fault is it; pauses everything while the destination is unusable
retry.py        when a failed file is tried again
after.py        keep, delete or archive, once the receipt is durable
stats.py        counters
"""
