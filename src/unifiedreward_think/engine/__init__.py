"""Everything that touches a KV cache or encoded images: decoding, prefix sharing, feature caches."""
