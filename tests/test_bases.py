"""What a teacher may start from: encoders and decoders of other families, with their own tokenisers; and adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from classifier.errors import InputError
from classifier.inputs import render
from classifier.session import Session
from classifier.types import Request
from tests.fit_support import OPTIONS, tiny_rows
from training.__main__ import main
from training.adapters import Lora, merged, with_adapters
from training.build_data import load_data
from training.export import export
from training.fit import fit, predict
from training.model import load_base, load_checkpoint, most_tokens, save_checkpoint, student_from, tokenizer_of
from training.probe import embed
from training.recipe import load_recipe
from training.train import train
from training.vocabulary import RESERVED

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]
MAX_TOKENS = 48
TEXTS = [row.request.messages[0].content for row in tiny_rows()] + ["what is <s> and [CLS] in a text?", "Déjà vu 123"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def word_pieces(names: list[str]) -> Tokenizer:
    """A BERT-like tokeniser without free entries."""
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=[*names, "[UNK]"]))
    return fast


def byte_pairs(names: list[str]) -> Tokenizer:
    """A tokeniser like those of RoBERTa, GPT and Llama."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=alphabet)
    )
    return fast


def unigrams(names: list[str]) -> Tokenizer:
    """A tokeniser like those of XLM-R and DeBERTa."""
    fast = Tokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=120, special_tokens=[*names, "<unk>"], unk_token="<unk>")
    )
    return fast


BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "bos_token": "<s>", "eos_token": "</s>"}
FAMILIES = {
    "bert": (word_pieces, BERT, {}),
    "electra": (word_pieces, BERT, {"embedding_size": 16}),
    "distilbert": (word_pieces, BERT, {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}),
    "mpnet": (word_pieces, ROBERTA, {}),
    "albert": (unigrams, BERT, {"embedding_size": 16}),
    "roberta": (byte_pairs, ROBERTA, {"type_vocab_size": 1}),
    "xlm-roberta": (unigrams, ROBERTA, {"type_vocab_size": 1}),
    "deberta-v2": (unigrams, BERT, {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "modernbert": (byte_pairs, BERT, {"global_attn_every_n_layers": 2}),
    "gpt2": (byte_pairs, {"eos_token": "<|end|>"}, {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "llama": (byte_pairs, {"bos_token": "<s>", "eos_token": "</s>"}, {"num_key_value_heads": 2}),
}


def checkpoint(folder: Path, family: str, **more: object) -> Path:
    """A random checkpoint of a family with a tokeniser as that family has it."""
    make, names, settings = FAMILIES[family]
    fast = make(list(dict.fromkeys(names.values())))
    fast.enable_padding(length=12)  # as files that sentence encoders leave behind have it
    fast.enable_truncation(max_length=12)
    PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(folder)
    plain = {} if family in ("distilbert", "gpt2") else SMALL
    padding = {"pad_token_id": fast.token_to_id(names["pad_token"])} if "pad_token" in names else {}
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": fast.get_vocab_size(),
            "max_position_embeddings": 64,
            "num_labels": 3,
            **padding,
            **plain,
            **settings,
            **more,
        },
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_starts_from_any_family(family, tmp_path):
    """A checkpoint of any family is read, trained, kept and read again, whatever its tokeniser calls its tokens."""
    model, fast = load_base(str(checkpoint(tmp_path / "base", family)), MAX_TOKENS)
    tokenizer = tokenizer_of(fast, MAX_TOKENS)
    ids, first, _ = tokenizer.ids(render(Request.from_text("what is it?")))
    named = [fast.id_to_token(i) for i in ids]
    assert (named[0], named[-1], first) == ("[CLS]", "[SEP]", len(ids))
    assert max(fast.get_vocab().values()) < model.get_input_embeddings().num_embeddings
    rows = tiny_rows(20)
    before = predict(model, tokenizer, rows, name="test")
    fit(model, tokenizer, rows, replace(OPTIONS, epochs=1), name="test")
    after = predict(model, tokenizer, rows, name="test")
    assert after.shape == (20, 4)
    assert np.isfinite(after).all()
    assert np.abs(after - before).max() > 1e-3
    save_checkpoint(model, fast, tmp_path / "kept", MAX_TOKENS)
    again, its_fast = load_checkpoint(tmp_path / "kept")
    assert np.allclose(predict(again, tokenizer_of(its_fast, MAX_TOKENS), rows, name="test"), after, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_forges_a_reserved_entry(family, tmp_path):
    """A text that spells a reserved name, or the family's own name for it, is text."""
    _, fast = load_base(str(checkpoint(tmp_path, family)), MAX_TOKENS)
    tokenizer = tokenizer_of(fast, 4096)
    own = FAMILIES[family][1].values()
    ids, _, _ = tokenizer.ids(render(Request.from_text(" x".join([*RESERVED, *own]))))
    assert not set(ids[7:-1]) & tokenizer.reserved_ids


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta", "deberta-v2"])
def test_padding_changes_no_answer(family, tmp_path):
    """A row is answered alike alone and beside longer ones: padding has the id that the family masks."""
    model, fast = load_base(str(checkpoint(tmp_path, family)), MAX_TOKENS)
    tokenizer = tokenizer_of(fast, MAX_TOKENS)
    rows = sorted(tiny_rows(20), key=lambda r: len(r.request.messages[0].content))
    together = predict(model, tokenizer, rows, name="test")
    assert np.allclose(together[:1], predict(model, tokenizer, rows[:1], name="test"), atol=2e-2)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "deberta-v2", "llama"])
def test_a_probe_takes_any_base(family, tmp_path):
    """A frozen base of any family makes the same of a request alone and beside longer ones."""
    base = str(checkpoint(tmp_path, family, max_position_embeddings=128))
    rows = sorted(tiny_rows(20), key=lambda r: len(r.request.messages[0].content))
    found = []
    for some in (rows, rows[:1]):
        torch.manual_seed(0)  # the entries that a base has not are drawn when it is loaded
        found.append(embed(some, base)[:1])
    assert np.allclose(*found, atol=2e-2)


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert", "mpnet", "roberta", "xlm-roberta", "deberta-v2"])
def test_student_of_another_family_is_exported(family, tmp_path):
    """A student cut from a family whose layers allow it becomes a graph that serving reads."""
    model, fast = load_base(str(checkpoint(tmp_path / "base", family)), MAX_TOKENS)
    rows = tiny_rows(30)
    export(
        student_from(model, 1), fast, tmp_path / "out",
        max_tokens=MAX_TOKENS, check=rows[:20], rounding=rows[20:], int8_agreement=0,
    )  # fmt: skip
    encoded = tokenizer_of(fast, MAX_TOKENS).encode(render(Request.from_text("hi")))
    arrays = (encoded.input_ids, encoded.attention_mask, encoded.token_type_ids)
    assert Session(tmp_path / "out" / "model.onnx").run(*arrays)[0].shape == (1, 4)


@pytest.mark.parametrize("family", ["modernbert", "albert", "gpt2"])
def test_family_that_no_student_can_be_cut_from_is_refused(family, tmp_path):
    """Where a family's layers do not stand alone the student needs a base of its own, and the message says so."""
    model, _ = load_base(str(checkpoint(tmp_path, family)), MAX_TOKENS)
    with pytest.raises(InputError, match=f"cut from the layers of a {family}; name the student's own base with --stu"):
        student_from(model, 1)


def test_positions_that_padding_takes_are_counted(tmp_path):
    """RoBERTa's table of positions holds two that no token has, and a longer sequence is refused before training."""
    folder = str(checkpoint(tmp_path, "roberta", max_position_embeddings=MAX_TOKENS + 2))
    assert most_tokens(load_base(folder, MAX_TOKENS)[0]) == MAX_TOKENS
    with pytest.raises(InputError, match=f"reads {MAX_TOKENS} tokens, the recipe wants {MAX_TOKENS + 1}; lower max_to"):
        load_base(folder, MAX_TOKENS + 1)


def test_encoder_decoder_is_refused(tmp_path):
    """A model with an encoder and a decoder is no base."""
    settings = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    AutoConfig.for_model("bart", vocab_size=50, **settings).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="bart is an encoder and a decoder"):
        load_base(str(tmp_path), MAX_TOKENS)


def test_folder_that_is_not_there_is_told_from_a_name_on_a_hub(tmp_path):
    """A misspelt folder is refused as one: a hub asked for it would try again for half a minute."""
    with pytest.raises(InputError, match="there is no such folder"):
        load_base(str(tmp_path / "checkpiont"), MAX_TOKENS)


def test_damaged_weights_are_refused(tmp_path):
    """Weights that cannot be read are an error that names the base, not a traceback."""
    folder = checkpoint(tmp_path, "bert")
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError, match=f"--base {folder}: no sequence-classification checkpoint could be loaded"):
        load_base(str(folder), MAX_TOKENS)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "deberta-v2", "modernbert", "gpt2", "llama"])
def test_adapters_train_little_and_are_merged(family, tmp_path):
    """Adapters, head and reserved embeddings are trained and nothing else; merged, the model answers alike."""
    torch.manual_seed(0)
    model, fast = load_base(str(checkpoint(tmp_path, family)), MAX_TOKENS)
    tokenizer = tokenizer_of(fast, MAX_TOKENS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = with_adapters(model, Lora(2, 4.0), tokenizer.reserved_ids)
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    assert trained < 0.5 * sum(p.numel() for p in learner.parameters())
    rows = tiny_rows(16)
    fit(learner, tokenizer, rows, replace(OPTIONS, epochs=2, learning_rate=1e-2), name="test")
    learnt = predict(learner, tokenizer, rows, name="test")
    plain = merged(learner)
    assert np.allclose(predict(plain, tokenizer, rows, name="test"), learnt, atol=0.05)
    after = plain.state_dict()
    assert after.keys() == before.keys()
    embeddings = next(n for n, m in plain.named_modules() if m is plain.get_input_embeddings()) + ".weight"
    moved = (after[embeddings] != before[embeddings]).any(dim=1).nonzero().flatten().tolist()
    assert set(moved) <= tokenizer.reserved_ids
    assert set(tokenizer.ids(render(rows[0].request))[0][:7]) <= set(moved)


def test_stopped_adapters_go_on_to_the_same_weights(tmp_path):
    """A run of adapters that was stopped keeps only what it trains, and ends as one that was not stopped."""

    def trained(**arguments):
        torch.manual_seed(0)
        model, fast = load_base("tiny", MAX_TOKENS)
        tokenizer = tokenizer_of(fast, MAX_TOKENS)
        learner = with_adapters(model, Lora(2, 4.0), tokenizer.reserved_ids)
        fit(learner, tokenizer, tiny_rows(25), OPTIONS, name="test", **arguments)
        return merged(learner).state_dict()

    whole = trained()
    calls = iter(range(100))

    def stopping(*arguments):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return loss(*arguments)

    from training import fit as fitting

    loss = fitting.losses_of
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "losses_of", stopping)
        trained(state=tmp_path, state_seconds=0)
    kept = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert all("lora_" in n or "modules_to_save" in n or "trainable_tokens_delta" in n for n in kept)
    again = trained(state=tmp_path, state_seconds=0)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Labelled rows as a corpus file."""
    from training.corpus import write_corpus

    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    write_corpus(path, tiny_rows(120))
    return path


def test_big_teacher_with_adapters_teaches_a_small_student(corpus, tmp_path):
    """A decoder trained through adapters teaches a student that has a base, and a tokeniser, of its own."""
    base = checkpoint(tmp_path / "base", "llama", max_position_embeddings=128)
    recipe = load_recipe("tiny", base=str(base), student={"base": "tiny"}, teacher={"lora_r": 2, "lora_alpha": None})
    student, fast = train(recipe, tmp_path / "run", load_data([], [], own=corpus), say=str)
    assert student.config.model_type == "bert"
    assert "[turns=1]" in fast.get_vocab()
    teacher, _ = load_checkpoint(tmp_path / "run" / "teacher" / "teacher-0")
    assert teacher.config.model_type == "llama"
    assert not [name for name in teacher.state_dict() if "lora" in name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora-alpha", "8"], "lora_alpha without lora_r"),
        (["--lora-r", "0"], "a rank from 1"),
        (["--base", "GPT2"], "name the student's own base with --student-base"),
        (["--base", "GPT2", "--student-base", "/nowhere"], "--base /nowhere: there is no such folder"),
    ],
    ids=["alpha alone", "no rank", "no layers to cut", "no student"],
)
def test_command_refuses_before_it_trains(corpus, tmp_path, arguments, message):
    """What cannot be trained is refused in one line with exit code 1, before a teacher is."""
    base = checkpoint(tmp_path / "base", "gpt2")
    arguments = [str(base) if a == "GPT2" else a for a in arguments]
    command = ["train", "--recipe", "tiny", "--data", str(corpus), "--out", str(tmp_path / "run"), *arguments]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1, done.output
    assert message in done.output
    assert not (tmp_path / "run" / "teacher").exists()


def test_recipe_with_an_unknown_key_is_refused(corpus, tmp_path):
    """A key of a recipe that means nothing is named, with those that do."""
    recipe = load_recipe("tiny", teacher={"epoch": 3})
    with pytest.raises(InputError, match=r"\[teacher\] has the unknown key 'epoch'; there are epochs, batch_size"):
        train(recipe, tmp_path / "run", load_data([], [], own=corpus), say=str)
