"""The fast path: a net for inference only, laid out for the processor it runs on."""
