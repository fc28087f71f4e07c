"""Page compressors and decompressors: one file per codec, chosen by the flag in a page's descriptor.

`registry.codec(flag)` gives one; its module, and the library behind it, is imported at first use.
"""
