"""Other tools as readers of a folder that rmkit wrote; nothing of rmkit is imported, so any environment runs this.

    python tests/campaigns/readers.py READER FOLDER..

Prints one line of JSON: the versions, and for each folder the rows of scores by door, or what the tool says against it.
"""

import importlib.util
import json
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding


def check_of(folder):
    return json.loads((Path(folder) / "rmkit.json").read_text())["self_check"]


def loaded(folder, **options):
    model = AutoModelForSequenceClassification.from_pretrained(folder, torch_dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def alone(folder, **options):
    """transformers with its defaults: one padded batch of texts, texts one by one, messages, ids."""
    check, (model, tokenizer) = check_of(folder), loaded(folder, **options)
    texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in check["messages"]]
    assert texts == check["texts"], "the template renders otherwise"
    for adding in (True, False):
        assert tokenizer(texts, add_special_tokens=adding)["input_ids"] == check["ids"], "the ids differ"
    with torch.no_grad():
        return {
            "text, padded": model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist(),
            "messages": [model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in texts],
            "ids": [model(torch.tensor([ids])).logits[0].tolist() for ids in check["ids"]],
        }


def eager(folder):
    """The same with eager attention, which has the softcap of Gemma 2."""
    return alone(folder, attn_implementation="eager")


def trl(folder):
    """TRL's RewardTrainer: its loading, rendering, tokenising and collating."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    talks = check_of(folder)["messages"]
    pairs = [{"prompt": t[:-1], "chosen": t[-1:], "rejected": [{"role": "assistant", "content": "No."}]} for t in talks]
    with tempfile.TemporaryDirectory() as place:
        args = RewardConfig(output_dir=place, report_to="none", use_cpu=True, bf16=False, max_steps=1)
        trainer = RewardTrainer(model=folder, args=args, train_dataset=Dataset.from_list(pairs))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return {"messages": logits[: len(pairs)].tolist()}


def rewardbench(folder):
    """RewardBench's own pipeline class, out of its wheel (the package imports much more); `cuda`, which it
    asks for by name, stands for the CPU."""
    wheel = next(Path(path) for path in sys.path if path.endswith(".whl"))
    source = zipfile.ZipFile(wheel).read("rewardbench/models/pipeline.py")
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("pipeline", None))
    exec(compile(source, "pipeline.py", "exec"), module.__dict__)
    BatchEncoding.to = lambda self, device: self
    check, (model, tokenizer) = check_of(folder), loaded(folder)
    tokenizer.padding_side = "left"
    texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in check["messages"]]
    return {"messages": module.RewardBenchPipeline("text-classification", model, tokenizer)(texts).tolist()}


def onnx(folder):
    """Exported by optimum, run by onnxruntime."""
    from optimum.onnxruntime import ORTModelForSequenceClassification

    check, tokenizer = check_of(folder), AutoTokenizer.from_pretrained(folder)
    model = ORTModelForSequenceClassification.from_pretrained(folder, export=True)
    return {"text": [model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in check["texts"]]}


def peft(folder):
    """PEFT's own loading of FINAL/adapter, merged by peft."""
    from peft import AutoPeftModelForSequenceClassification

    model = AutoPeftModelForSequenceClassification.from_pretrained(f"{folder}/adapter", num_labels=1)
    model, check = model.merge_and_unload().eval(), check_of(f"{folder}/adapter")
    with torch.no_grad():
        return {"ids": [model(torch.tensor([ids])).logits[0].tolist() for ids in check["ids"]]}


READERS = {read.__name__: read for read in (alone, eager, trl, rewardbench, onnx, peft)}
PACKAGES = ("transformers", "tokenizers", "torch", "trl", "peft", "optimum", "optimum-onnx", "onnxruntime")


def versions():
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except Exception:  # not installed
            continue
    return found


def main(reader, folders):
    found = {}
    for folder in folders:
        try:
            found[folder] = READERS[reader](folder)
        except Exception as error:  # what a tool says against a folder is what we want to know
            found[folder] = {"error": f"{type(error).__name__}: {error}"}
    return {"versions": versions(), "folders": found}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
