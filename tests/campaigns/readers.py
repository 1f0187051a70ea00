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
from types import SimpleNamespace

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


def rewarded(trainer, config, ask, folder, bf16=False):
    """What one of TRL's online trainers computes with FINAL as `reward_funcs`: by its path, of messages, and loaded in
    float32, of whole texts as completions. The policy is a tiny Llama, which is not asked. By default these trainers
    have `bf16`, under which accelerate casts in the reward model too."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    check, (model, tokenizer) = check_of(folder), loaded(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    given = {
        "messages": (folder, [t[:-1] for t in check["messages"]], [t[-1:] for t in check["messages"]]),
        "text": (model, ["" for _ in check["texts"]], check["texts"]),
    }
    found = {}
    with tempfile.TemporaryDirectory() as place:
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(place)
        for door, (reward, prompts, completions) in given.items():
            built = trainer(
                model=place,
                reward_funcs=reward,
                args=config(output_dir=place, report_to="none", use_cpu=True, bf16=bf16, max_steps=1),
                train_dataset=Dataset.from_list([{"prompt": each} for each in prompts]),
                processing_class=AutoTokenizer.from_pretrained(folder),
            )
            found[door] = [[score] for score in ask(built, prompts, completions).flatten().tolist()]
    return found


def calculated(trainer, prompts, completions):
    """By the method that GRPOTrainer and RLOOTrainer have for it."""
    return trainer._calculate_rewards([{"prompt": each} for each in prompts], prompts, completions, [])


def grpo(folder, bf16=False):
    """TRL's GRPOTrainer with FINAL as `reward_funcs`."""
    from trl import GRPOConfig, GRPOTrainer

    return rewarded(GRPOTrainer, GRPOConfig, calculated, folder, bf16)


def grpo_bf16(folder):
    """The same under `bf16`, as it is by default."""
    return grpo(folder, bf16=True)


def rloo(folder):
    """TRL's RLOOTrainer with FINAL as `reward_funcs`."""
    from trl import RLOOConfig, RLOOTrainer

    return rewarded(RLOOTrainer, RLOOConfig, calculated, folder)


def online_dpo(folder):
    """TRL's OnlineDPOTrainer, in its experimental part, with FINAL as `reward_funcs`."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    def ask(trainer, prompts, completions):
        return trainer._calculate_rewards_from_functions(prompts, completions, [])

    return rewarded(OnlineDPOTrainer, OnlineDPOConfig, ask, folder)


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
    """Exported by optimum, run by onnxruntime: one padded batch of texts, ids."""
    from optimum.onnxruntime import ORTModelForSequenceClassification

    check, tokenizer = check_of(folder), AutoTokenizer.from_pretrained(folder)
    model = ORTModelForSequenceClassification.from_pretrained(folder, export=True)
    batch = tokenizer(check["texts"], padding=True, return_tensors="pt")
    alone = [torch.tensor([ids]) for ids in check["ids"]]
    return {
        "text, padded": model(**batch).logits.tolist(),
        "ids": [model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].tolist() for ids in alone],
    }


def openrlhf(folder, precision=torch.float32):
    """OpenRLHF's reward server without its HTTP: model type reward, texts padded on the left, and ids. Two things are
    not its own: flash_attn, which it imports by name and calls for packed samples alone, is empty modules; and float32,
    which it has no name for, is put in the place of its bf16."""
    names = {"flash_attn": (), "flash_attn.utils": (), "flash_attn.utils.distributed": ("all_gather",)}
    names["flash_attn.bert_padding"] = ("index_first_axis", "pad_input", "rearrange", "unpad_input")
    for name, held in names.items():
        sys.modules[name] = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, None))
        sys.modules[name].__dict__.update(dict.fromkeys(held))
    import openrlhf.utils.utils
    from openrlhf.cli.serve_rm import RewardModelProxy

    openrlhf.utils.utils.convert_to_torch_dtype = {"bf16": precision}.__getitem__
    # What serve_rm has by default, but for the attention: its flash_attention_2 is for GPUs.
    ds = {"param_dtype": "bf16", "load_in_4bit": False, "value_head_prefix": "score", "packing_samples": False}
    groups = {
        "reward": {"model_name_or_path": folder, "normalize_enable": False},
        "ds": {**ds, "attn_implementation": "eager", "experts_implementation": None},
        "data": {"max_len": 2048, "disable_fast_tokenizer": False},
    }
    arguments = {group: SimpleNamespace(**values) for group, values in groups.items()}
    server, check = RewardModelProxy(SimpleNamespace(**arguments, batch_size=None)), check_of(folder)
    with torch.no_grad():
        alone = [torch.tensor([ids]) for ids in check["ids"]]
        return {
            "text, padded": [[score] for score in server.get_reward(check["texts"])],
            "ids": [server.reward_model(ids, torch.ones_like(ids)).tolist() for ids in alone],
        }


def openrlhf_bf16(folder):
    """The same in bf16, as it is by default."""
    return openrlhf(folder, torch.bfloat16)


def peft(folder):
    """PEFT's own loading of FINAL/adapter, merged by peft."""
    from peft import AutoPeftModelForSequenceClassification

    model = AutoPeftModelForSequenceClassification.from_pretrained(f"{folder}/adapter", num_labels=1)
    model, check = model.merge_and_unload().eval(), check_of(f"{folder}/adapter")
    with torch.no_grad():
        return {"ids": [model(torch.tensor([ids])).logits[0].tolist() for ids in check["ids"]]}


OF_TRL = (trl, grpo, grpo_bf16, rloo, online_dpo)
READERS = {r.__name__: r for r in (alone, eager, *OF_TRL, rewardbench, onnx, openrlhf, openrlhf_bf16, peft)}
PACKAGES = ("transformers", "tokenizers", "torch", "trl", "peft", "optimum", "optimum-onnx", "onnxruntime", "openrlhf")


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
