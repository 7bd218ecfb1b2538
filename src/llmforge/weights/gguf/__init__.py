"""Models as llama.cpp reads them: one GGUF file with weights, sizes and tokenizer (docs/model.md).

The names and the rules are llama.cpp's (ggml-org/llama.cpp: gguf-py/gguf/constants.py, conversion/*.py, src/llama-vocab.cpp,
src/models/*.cpp). Where it has no word for something of a model, the model is refused.
"""
