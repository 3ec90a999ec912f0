"""A copy of a run folder in an object store, from which another machine goes on when this one is lost.

Below a URL stand `objects/<SHA-256>`, written once, and `index.json`: which object is which file. The index is replaced whole, when all objects
that it names are there, and what it no longer names is removed afterwards. So the copy is always the folder of one moment, however a push ended.

One machine at a time writes a copy. The index tells who did, and who finds another's there refuses; two that look in the same second are not told apart.
"""
