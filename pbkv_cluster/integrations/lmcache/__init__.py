"""LMCache: our store as its second level, behind its CPU memory (`--l2-adapter` of type `plugin`).

1. `adapter`: `PbkvL2Adapter`, which LMCache loads. The only module that imports LMCache.
2. `object_stores`: an `EngineStore` for each length of objects, since all blocks of a store have one length.
3. `tasks`: numbered tasks whose results LMCache picks up when an event has told it that there are some.
"""
