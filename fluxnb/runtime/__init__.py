"""How weights are held and computed: assembly, streaming, quantization, GGUF, adaLN cache, compilation, CUDA graphs."""
