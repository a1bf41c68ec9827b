"""The nursery: one quiet process that has the grammar libraries loaded and every tokenizer built, and forks what is needed
from there: workers, ready in milliseconds, and compile children, which may be killed."""
