"""What any number of ranks wrote of Adam's state, any other number reads, sharded or not, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from rmkit.storage import export, training_state
from rmkit.storage.checkpoint import Progress, newest_whole
from rmkit.training.optim import adamw
from support import two_ranks
from support.ranks import run
from support.saved import CONFIG, TOKENIZER, save, small
from support.state_of import full_state, trained

transformers_logging.disable_progress_bar()


def written(folder):
    model = small()
    optimizer = adamw(model, CONFIG.optim)
    trained(model, optimizer, 3)
    save(folder, Progress(step=3), model, TOKENIZER, optimizer)
    save_file(full_state(model, optimizer), folder / "wanted.safetensors")
    return folder / "checkpoints" / "step-3" / "training"


@pytest.fixture(scope="module")
def ranks_and_one(tmp_path_factory):
    """Folders that one process and, in one go, two ranks under ddp and fsdp wrote; and what those two found."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "FILE_SIZE", "20KB")
        written(folder / "one")
    run(2, folder / "said", two_ranks.main, folder)
    return folder, json.loads((folder / "found.json").read_text())


def test_two_ranks_read_what_one_or_two_wrote(ranks_and_one):
    _, found = ranks_and_one
    assert len(found) == 2
    assert len(found[0]) == 12
    assert [name for each in found for name, right in each.items() if not right] == []


@pytest.mark.parametrize("strategy", ["one", "ddp", "fsdp"])
def test_one_process_reads_what_one_or_two_wrote(ranks_and_one, strategy):
    folder = ranks_and_one[0] / strategy
    said = []
    checkpoint, _ = newest_whole(folder, said.append)
    assert len(said) == (strategy == "fsdp")  # two_ranks.py damaged a newer one there
    wanted = load_file(folder / "wanted.safetensors")
    model = small()
    model.classifier.load_state_dict(AutoModelForSequenceClassification.from_pretrained(checkpoint).state_dict())
    optimizer = adamw(model, CONFIG.optim)
    training_state.load(checkpoint / "training", model, optimizer)
    found = full_state(model, optimizer)
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_rank_writes_its_share(ranks_and_one, strategy):
    folder = ranks_and_one[0] / strategy / "checkpoints" / "step-3" / "training"
    sizes = [sum(file.stat().st_size for file in folder.glob(f"shard-{rank:05d}-*")) for rank in (1, 2)]
    assert max(sizes) < 0.7 * sum(sizes)


def test_tensors_only_and_no_pickle(ranks_and_one):
    files = [path for path in ranks_and_one[0].rglob("training/*") if path.is_file()]
    assert len(files) > 9
    names = {name for file in files for name in load_file(file)}
    assert {"random.0.cpu", "random.1.cpu", "optimizer.score.weight.step", "optimizer.score.weight.exp_avg_sq"} <= names


def test_before_the_first_step_there_is_no_state(tmp_path):
    model = small()
    optimizer = adamw(model, CONFIG.optim)
    folder = save(tmp_path, Progress(), model, TOKENIZER, optimizer)
    torch.manual_seed(5)
    training_state.load(folder / "training", model, optimizer)
    assert len(optimizer.state) == 0


def test_another_model_is_refused(tmp_path):
    training = written(tmp_path)
    for layers, message in ((1, "layers.1.* which the model does not have"), (3, "no optimizer state of .*layers.2")):
        other = small(num_hidden_layers=layers)
        with pytest.raises(ValueError, match=message):
            training_state.load(training, other, adamw(other, CONFIG.optim))


def test_writing_never_waits_for_the_stream_that_trains(tmp_path, monkeypatch):
    """As on a machine with a GPU, where the writer by default waits for it once for every tensor."""
    model = small()
    optimizer = adamw(model, CONFIG.optim)
    trained(model, optimizer, 1)
    state = training_state.copied(model, optimizer)

    def waits(*_):
        raise AssertionError("a stream was asked for")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", waits)
    training_state.write(state, tmp_path, dict.fromkeys(dict(model.classifier.named_parameters()), "model.safetensors"))
    assert {name for file in tmp_path.iterdir() for name in load_file(file)} == set(state)
