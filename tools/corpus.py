"""The training text as token streams: which file weighs how much, and windows of it."""

WEIGHTS = {
    "wiki.txt": 0.36,
    "books.txt": 0.25,
    "code.py.txt": 0.14,
    "logs.txt": 0.07,
    "json.txt": 0.03,
    "man.txt": 0.05,
    "pod.txt": 0.05,
    "debian-handbook.html": 0.02,
    "foldoc.txt": 0.03,
}
