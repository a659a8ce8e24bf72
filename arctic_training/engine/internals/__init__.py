"""DeepSpeed's undocumented attributes. No other file of ``engine/`` or ``checkpoint/`` reads one, but `leaf_modules`.

`tests/engine/test_internals.py` names each of them on real engines, so that a new DeepSpeed fails by name.
"""
