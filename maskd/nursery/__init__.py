"""Zygote and nurseries: the processes that are forked, and so have one thread only.

The zygote has the grammar libraries loaded and forks a nursery for each vocabulary. A nursery has its vocabulary built.
It forks workers, which are ready in milliseconds, and compile children, which may be killed.
"""
