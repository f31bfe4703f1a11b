"""The store: a directory whose cold files are containers under their own names.

Rooms: `store` (the directory and its `.lmfs/`), `marks` (hot, frozen or damaged), `inodes` (kept
inode numbers), `system` (system calls), `publish` (the durability protocol), `content` (what a
file holds), `freeze` (one file), `copying` (out of the store), `walk` (many files), `account`
(statistics), `control` (finding a mounted store).
Import the room you need: this package imports none of them, so that it costs nothing.
"""
