"""Files to read, near and far: on a local disk, a web server, or an object store.

stored_files.py      StoredFile, which says what a file is and opens it; what a folder or glob names
local_files.py  http_files.py  object_files.py     one module for each kind of storage
readers.py  remote_readers.py                      a position in a file, and streams over requests
retries.py  failures.py  versions.py               which failures pass, how they are said, what has changed
"""
