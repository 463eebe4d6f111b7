"""The preflight: what the hosts of a job are like, compared and judged before a run starts on them.

Probes collect facts of one host (`*_probes.py`), each with a deadline; checks are pure functions over the facts of all
hosts (`*_checks.py`).
"""
