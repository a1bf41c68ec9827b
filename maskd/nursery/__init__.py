"""The quiet processes: single-threaded, so that they can be forked. The zygote has the grammar libraries loaded and
forks a nursery for each vocabulary; a nursery has its vocabulary built and forks what needs it: workers, ready in
milliseconds, and compile children, which
may be killed."""
