"""What transformers does with a model besides calling it: generate, save, load."""

import pytest
import torch

from galvanic import calibrate_ranges, convert, load_profile, reads, to_digital

transformers = pytest.importorskip("transformers", reason="tried where transformers is installed: pip install 'galvanic[models]'")


@pytest.fixture
def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def ids():
    return torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def test_on_ideal_hardware_the_generated_words_are_the_digital_ones(llama, ids):
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    words = llama.generate(ids, **how)
    assert words.shape == (2, 13)
    assert torch.equal(convert(llama, load_profile("ideal"), chip=3).generate(ids, **how), words)


@torch.no_grad()
def test_a_model_that_transformers_saved_comes_back_on_the_same_chip_with_its_bits(llama, ids, tmp_path):
    def outputs(digital):
        with reads(calibrate_ranges(convert(digital, load_profile("pcm"), chip=3), [ids]), "off") as model:
            return model(ids).logits, model

    before, model = outputs(llama)
    to_digital(model).save_pretrained(tmp_path)
    after, _ = outputs(transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval())
    assert torch.equal(after, before)
    assert not torch.allclose(after, llama(ids).logits, atol=1e-3)
