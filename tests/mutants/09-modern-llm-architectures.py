"""Ways to build a modern decoder wrongly that look right."""

from __future__ import annotations

from mutant import Mutant

_LLAMA = "09-modern-llm-architectures/llama.py"
_CONFIG = "09-modern-llm-architectures/llama_config.py"
_TESTS = ("tests/09-modern-llm-architectures/test_llama.py",)

MUTANTS = [
    Mutant(
        name="llama-forgets-rope",
        module=_LLAMA,
        old="                rotary=rotary,\n",
        new="",
        tests=_TESTS,
        symptom="Loads any checkpoint without a complaint and speaks in a salad of likely words.",
        finder="logits beside transformers'; stretched positions must change the logits",
    ),
    Mutant(
        name="llama-positions-restart-in-the-cache",
        module=_LLAMA,
        old="torch.arange(T, device=ids.device) if cache is None else cache.positions(T)",
        new="torch.arange(T, device=ids.device)",
        tests=_TESTS,
        symptom="Training and the first generated token are right; text falls apart after it.",
        finder="cached = uncached, one token at a time",
    ),
    Mutant(
        name="llama-ragged-rows-see-their-padding",
        module=_LLAMA,
        old="ragged = None if cache is None else cache.keep(T)",
        new="ragged = None",
        tests=_TESTS,
        symptom="A prompt's completion changes with the length of the other prompts in its batch.",
        finder="each row of a ragged batch against the same row alone",
    ),
    Mutant(
        name="llama-drops-the-scaling-rule",
        module=_LLAMA,
        old="            scaling=config.rope_scaling,\n",
        new="",
        tests=_TESTS,
        symptom="Good on short prompts, nonsense once a text is longer than the trained length.",
        finder="logits beside transformers' past every scaling boundary",
    ),
    Mutant(
        name="llama-norms-use-the-default-eps",
        module=_LLAMA,
        old="return RMSNorm(width, eps=config.norm_eps)",
        new="return RMSNorm(width)",
        tests=_TESTS,
        symptom="Logits of published checkpoints are off in the third digit; nothing else shows.",
        finder="logits beside transformers' with an eps that is not the default",
    ),
    Mutant(
        name="llama-copies-the-tied-embedding",
        module=_LLAMA,
        old="self.unembed.weight = self.token_embedding.weight",
        new="self.unembed.weight = nn.Parameter(self.token_embedding.weight.detach().clone())",
        tests=_TESTS,
        symptom="More parameters than the preset says; the saved checkpoint gives other logits.",
        finder="parameters counted against the config; gradients beside transformers'",
    ),
    Mutant(
        name="llama-exchanges-gate-and-up",
        module=_LLAMA,
        old='        Rule(f"{theirs}mlp.gate_proj.weight", f"{ours}feed_forward.gate.weight"),\n'
        '        Rule(f"{theirs}mlp.up_proj.weight", f"{ours}feed_forward.up.weight"),\n',
        new='        Rule(f"{theirs}mlp.gate_proj.weight", f"{ours}feed_forward.up.weight"),\n'
        '        Rule(f"{theirs}mlp.up_proj.weight", f"{ours}feed_forward.gate.weight"),\n',
        tests=_TESTS,
        symptom="A checkpoint loads, every shape fits, and the model is far worse than published.",
        finder="logits beside transformers'",
    ),
    Mutant(
        name="llama-counts-kv-heads-as-heads",
        module=_CONFIG,
        old="2 * self.d_model * self.head_width * (self.num_heads + self.kv_heads)",
        new="4 * self.d_model * self.head_width * self.num_heads",
        tests=_TESTS,
        symptom="The plan says 8.8 billion parameters for Llama 3 8B, and FLOPs to match.",
        finder="published counts of grouped-query models",
    ),
    Mutant(
        name="llama-config-ignores-head-dim",
        module=_LLAMA,
        old='head_dim=raw["head_dim"] if qk_norm else raw.get("head_dim"),',
        new="head_dim=None,",
        tests=_TESTS,
        symptom="Qwen3-0.6B, whose heads are wider than D/H, does not load; Llama 3 8B does.",
        finder="any comparison with transformers where H·K is not D",
    ),
]
