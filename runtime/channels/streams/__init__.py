"""What every channel over streams does the same way, whatever carries the stream: gRPC or a unix socket.

`stream` is one stream with the exchanges on it, `channel` has the lanes that mend streams, `deadlines` gives
up what is late. `server` is what a worker listens with, `callers` who calls, `memory` what they may take.
"""
