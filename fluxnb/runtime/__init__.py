"""How weights are held and computed: assembly, streaming, quantisation, GGUF, adaLN cache, compilation, CUDA graphs."""
