"""What stands between a request and a worker: the policy file, admission, quotas, approvals.

The rules of privacy are `runtime.policy`'s; what objects and plans are is the handlers'.
"""
