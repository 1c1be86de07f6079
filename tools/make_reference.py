"""An independent reference of docs/model.md in NumPy: checks golden cases and makes new ones.

  python3 tools/make_reference.py --check tests/golden/tiny-a      compares with its reference.safetensors
  python3 tools/make_reference.py --make CASE OUT_FOLDER           writes a random checkpoint and its reference
  python3 tools/make_reference.py --list                           the cases of --make

Written from docs/model.md alone, in float64, with none of the engine's code or structure: where both agree, both are
right. Needs NumPy.
"""
import argparse
import json
import math
import os
import struct
import sys

import numpy as np

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                0.7229568362236023, 1.0], np.float32)
FP4 = np.array([0, 0.0052083333, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25,
                0, -0.0052083333, -0.66666667, -1, -0.33333333, -0.5, -0.16666667, -0.25], np.float32)
DTYPES = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I32": np.int32, "I64": np.int64}
EPS_L2 = 1e-6


# ---- files -----------------------------------------------------------------------------------------------------------

def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def read_safetensors(path):
    with open(path, "rb") as file:
        blob = file.read()
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8:8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        data = blob[begin:end]
        if entry["dtype"] == "BF16":
            array = bf16_to_f32(np.frombuffer(data, np.uint16))
        else:
            array = np.frombuffer(data, DTYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return tensors, metadata


def write_safetensors(path, tensors, metadata):
    """tensors: name -> array; uint16 arrays are written as BF16."""
    names = {np.dtype(np.uint16): "BF16", **{np.dtype(v): k for k, v in DTYPES.items()}}
    header, data, offset = {"__metadata__": metadata}, [], 0
    for name, array in tensors.items():
        array = np.ascontiguousarray(array)
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        data.append(array.tobytes())
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def dequantize(tensors, name):
    """The float32 matrix of a 4-bit group."""
    state_name = next(n for n in tensors if n.startswith(name + ".quant_state.bitsandbytes__"))
    state = json.loads(bytes(tensors[state_name]))
    packed = tensors[name].reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)
    absmax = tensors[name + ".absmax"]
    if absmax.dtype == np.uint8:
        nested = np.repeat(tensors[name + ".nested_absmax"], state["nested_blocksize"])[:absmax.size]
        absmax = tensors[name + ".nested_quant_map"][absmax] * nested + np.float32(state["nested_offset"])
    count = math.prod(state["shape"])
    scale = np.repeat(absmax.astype(np.float32), state["blocksize"])[:count]
    return (tensors[name + ".quant_map"][codes[:count]] * scale).reshape(state["shape"])


def read_checkpoint(folder):
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        with open(index) as file:
            shards = sorted(set(json.load(file)["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    raw = {}
    for shard in shards:
        raw.update(read_safetensors(os.path.join(folder, shard))[0])
    weights = {}
    quantised = {n.split(".quant_state.")[0] for n in raw if ".quant_state." in n}
    for name, array in raw.items():
        if name in quantised:
            weights[name] = dequantize(raw, name).astype(np.float64)
        elif not any(name.startswith(q + ".") for q in quantised):
            weights[name] = array.astype(np.float64)
    return config, weights


# ---- mathematics -----------------------------------------------------------------------------------------------------

def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Model:
    def __init__(self, config, weights):
        self.c, self.w = config, weights
        c = config
        rope = c.get("rope_parameters") or {}
        scaling = rope or c.get("rope_scaling") or {}
        self.theta = rope.get("rope_theta", c.get("rope_theta", 10000.0))
        fraction = rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 0.25))
        self.rotary = int(c["head_dim"] * fraction)
        j = np.arange(self.rotary // 2)
        self.frequencies = self.theta ** (-2.0 * j / self.rotary)
        self.rope_scale = 1.0
        if scaling.get("rope_type", scaling.get("type")) == "yarn":
            factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

            def dimension(turns):
                return self.rotary * math.log(original / (2 * math.pi * turns)) / (2 * math.log(self.theta))

            low = max(math.floor(dimension(scaling.get("beta_fast", 32))), 0)
            high = min(math.ceil(dimension(scaling.get("beta_slow", 1))), self.rotary - 1)
            ramp = np.clip((j - low) / (high - low), 0, 1)
            self.frequencies = self.frequencies * (ramp / factor + 1 - ramp)
            self.rope_scale = scaling.get("attention_factor") or 0.1 * math.log(factor) + 1
        kinds = c.get("layer_types")
        interval = c.get("full_attention_interval", 4)
        self.is_attention = [(kinds[i] == "full_attention") if kinds else (i + 1) % interval == 0
                             for i in range(c["num_hidden_layers"])]
        self.has_experts = [i not in (c.get("mlp_only_layers") or []) and
                            (i + 1) % c.get("decoder_sparse_step", 1) == 0
                            for i in range(c["num_hidden_layers"])]

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * (1 + self.w[name])

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T

    def mlp(self, x, prefix):
        return self.linear(silu(self.linear(x, prefix + "gate_proj")) * self.linear(x, prefix + "up_proj"),
                           prefix + "down_proj")

    def rotate(self, x, positions):
        """x [T, heads, d]"""
        half = self.rotary // 2
        angle = positions[:, None] * self.frequencies[None]
        cos, sin = (f(angle)[:, None] * self.rope_scale for f in (np.cos, np.sin))
        a, b = x[..., :half], x[..., half:self.rotary]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., self.rotary:]], -1)

    def attention(self, x, prefix, cache):
        c, tokens = self.c, len(x)
        heads, groups, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        q, gate = np.split(self.linear(x, prefix + "q_proj").reshape(tokens, heads, 2 * width), 2, -1)
        k = self.linear(x, prefix + "k_proj").reshape(tokens, groups, width)
        v = self.linear(x, prefix + "v_proj").reshape(tokens, groups, width)
        past = len(cache["k"]) if "k" in cache else 0
        positions = np.arange(past, past + tokens)
        q = self.rotate(self.norm(q, prefix + "q_norm.weight"), positions)
        k = self.rotate(self.norm(k, prefix + "k_norm.weight"), positions)
        if past:
            k, v = np.concatenate([cache["k"], k]), np.concatenate([cache["v"], v])
        cache["k"], cache["v"] = k, v
        out = np.empty((tokens, heads, width))
        visible = np.arange(past + tokens)[None] <= positions[:, None]
        for h in range(heads):
            g = h // (heads // groups)
            scores = np.where(visible, q[:, h] @ k[:, g].T * width ** -0.5, -np.inf)
            out[:, h] = softmax(scores) @ v[:, g]
        return self.linear((out * sigmoid(gate)).reshape(tokens, -1), prefix + "o_proj")

    def delta_net(self, x, prefix, cache):
        c, tokens = self.c, len(x)
        hk, hv = c["linear_num_key_heads"], c["linear_num_value_heads"]
        dk, dv, width = c["linear_key_head_dim"], c["linear_value_head_dim"], c["linear_conv_kernel_dim"]
        share = hv // hk
        qkvz = self.linear(x, prefix + "in_proj_qkvz").reshape(tokens, hk, 2 * dk + 2 * share * dv)
        q, k, v, z = np.split(qkvz, [dk, 2 * dk, 2 * dk + share * dv], -1)
        b, a = np.split(self.linear(x, prefix + "in_proj_ba").reshape(tokens, hk, 2 * share), 2, -1)
        z, b, a = z.reshape(tokens, hv, dv), b.reshape(tokens, hv), a.reshape(tokens, hv)
        mixed = np.concatenate([t.reshape(tokens, -1) for t in (q, k, v)], -1)
        history = cache.get("conv", np.zeros((width, mixed.shape[1])))
        padded = np.concatenate([history[1:], mixed])
        cache["conv"] = np.concatenate([history, mixed])[-width:]
        kernel = self.w[prefix + "conv1d.weight"][:, 0]
        mixed = silu(sum(padded[i:i + tokens] * kernel[:, i] for i in range(width)))
        q, k, v = np.split(mixed, [hk * dk, 2 * hk * dk], -1)
        q, k = (np.repeat(t.reshape(tokens, hk, dk), share, 1) for t in (q, k))
        q, k = (t / np.sqrt((t * t).sum(-1, keepdims=True) + EPS_L2) for t in (q, k))
        q, v = q * dk ** -0.5, v.reshape(tokens, hv, dv)
        beta = sigmoid(b)
        decay = np.exp(-np.exp(self.w[prefix + "A_log"]) * np.logaddexp(0, a + self.w[prefix + "dt_bias"]))
        state = cache.get("state", np.zeros((hv, dk, dv)))
        out = np.empty((tokens, hv, dv))
        for t in range(tokens):
            state = state * decay[t][:, None, None]
            change = (v[t] - np.einsum("hkv,hk->hv", state, k[t])) * beta[t][:, None]
            state = state + k[t][:, :, None] * change[:, None, :]
            out[t] = np.einsum("hkv,hk->hv", state, q[t])
        cache["state"] = state
        out = self.w[prefix + "norm.weight"] * out / np.sqrt((out * out).mean(-1, keepdims=True) + c["rms_norm_eps"])
        return self.linear((out * silu(z)).reshape(tokens, -1), prefix + "out_proj")

    def expert(self, x, prefix, e):
        fused = prefix + "experts.gate_up_proj"
        if fused in self.w:
            gate, up = np.split(x @ self.w[fused][e].T, 2, -1)
            return (silu(gate) * up) @ self.w[prefix + "experts.down_proj"][e].T
        return self.mlp(x, f"{prefix}experts.{e}.")

    def experts(self, x, prefix, trace):
        c = self.c
        probabilities = softmax(self.linear(x, prefix + "gate"))
        ids = np.argsort(-probabilities, axis=-1, kind="stable")[:, :c["num_experts_per_tok"]]
        weights = np.take_along_axis(probabilities, ids, -1)
        if c.get("norm_topk_prob", True):
            weights = weights / weights.sum(-1, keepdims=True)
        out = self.mlp(x, prefix + "shared_expert.") * sigmoid(self.linear(x, prefix + "shared_expert_gate"))
        for e in np.unique(ids):
            rows, places = np.nonzero(ids == e)
            out[rows] += self.expert(x[rows], prefix, e) * weights[rows, places][:, None]
        trace["router.topk_ids"], trace["router.topk_weights"] = ids, weights
        return out

    def forward(self, ids, caches, trace=None):
        trace = {} if trace is None else trace
        x = self.w["model.embed_tokens.weight"][ids]
        trace["embedding"] = x
        for i in range(self.c["num_hidden_layers"]):
            prefix, layer = f"model.layers.{i}.", {}
            h = self.norm(x, prefix + "input_layernorm.weight")
            if self.is_attention[i]:
                x = x + self.attention(h, prefix + "self_attn.", caches[i])
            else:
                x = x + self.delta_net(h, prefix + "linear_attn.", caches[i])
            h = self.norm(x, prefix + "post_attention_layernorm.weight")
            x = x + (self.experts(h, prefix + "mlp.", layer) if self.has_experts[i]
                     else self.mlp(h, prefix + "mlp."))
            trace[f"layers.{i}.hidden"] = x
            trace.update({f"layers.{i}.{k}": v for k, v in layer.items()})
        head = "model.embed_tokens" if self.c.get("tie_word_embeddings") else "lm_head"
        return self.linear(self.norm(x, "model.norm.weight"), head)


def reference(config, weights, ids, n_decode=24):
    model = Model(config, weights)
    caches = [{} for _ in range(config["num_hidden_layers"])]
    out = {}
    logits = model.forward(ids, caches, out)
    out["logits"] = logits
    for i, cache in enumerate(caches):
        if "state" in cache:
            out[f"layers.{i}.conv_state"] = cache["conv"].T[None]
            out[f"layers.{i}.recurrent_state"] = cache["state"][None]
    decode_ids, decode_logits, last = [], [], logits[-1]
    for _ in range(n_decode):
        token = int(last.argmax())
        last = model.forward(np.array([token]), caches)[-1]
        decode_ids.append(token)
        decode_logits.append(last)
    shifted = logits[:-1] - logits[:-1].max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nll = -log_probabilities[np.arange(len(ids) - 1), ids[1:]].mean()
    tensors = {k: v.astype(np.int32 if k.endswith("topk_ids") else np.float32) for k, v in out.items()}
    tensors["input_ids"] = np.asarray(ids, np.int32)
    tensors["decode_ids"] = np.array(decode_ids, np.int32)
    tensors["decode_logits"] = np.array(decode_logits, np.float32)
    return tensors, {"nll": f"{nll:.6f}", "made_by": "tools/make_reference.py", "dtype": "float64"}


def check(folder):
    want, metadata = read_safetensors(os.path.join(folder, "reference.safetensors"))
    got, got_metadata = reference(*read_checkpoint(folder), want["input_ids"])
    worst = {}
    for name, array in want.items():
        kind = name.split(".")[-1] if name.startswith("layers.") else name
        if array.dtype.kind == "i":
            value = float((got[name] != array).mean())
        else:
            value = float(np.abs(got[name] - array).max() / max(np.abs(array).max(), 1e-30))
        worst[kind] = max(worst.get(kind, 0), value)
    print(f"{folder}: nll {got_metadata['nll']} (reference {metadata.get('nll')})")
    for kind, value in worst.items():
        print(f"  {kind:18} {value:.2e}" + (" of the ids differ" if "ids" in kind else " of the largest value"))
    return max(worst.values()) < 1e-3


# ---- new cases -------------------------------------------------------------------------------------------------------

def quantize(matrix, kind, double, blocksize=64):
    """A 4-bit group as bitsandbytes lays it out; returns suffix -> array."""
    levels = NF4 if kind == "nf4" else FP4
    flat = matrix.astype(np.float32).reshape(-1)
    count = flat.size
    blocks = np.zeros(-(-count // blocksize) * blocksize, np.float32)
    blocks[:count] = flat
    blocks = blocks.reshape(-1, blocksize)
    absmax = np.maximum(np.abs(blocks).max(1), 1e-8).astype(np.float32)
    codes = np.abs((blocks / absmax[:, None])[..., None] - levels).argmin(-1).reshape(-1)[:count + count % 2]
    group = {"": ((codes[::2] << 4) | codes[1::2]).astype(np.uint8)[:, None], ".quant_map": levels}
    state = {"quant_type": kind, "blocksize": blocksize, "dtype": "bfloat16", "shape": list(matrix.shape)}
    if double:
        table = np.linspace(-1, 1, 256).astype(np.float32)
        offset = float(absmax.mean())
        centred = absmax - np.float32(offset)
        padded = np.zeros(-(-centred.size // 256) * 256, np.float32)
        padded[:centred.size] = centred
        nested = np.maximum(np.abs(padded.reshape(-1, 256)).max(1), 1e-8).astype(np.float32)
        scaled = centred / np.repeat(nested, 256)[:centred.size]
        group[".absmax"] = np.abs(scaled[:, None] - table).argmin(-1).astype(np.uint8)
        group[".nested_absmax"], group[".nested_quant_map"] = nested, table
        state.update(nested_blocksize=256, nested_dtype="float32", nested_offset=offset)
    else:
        group[".absmax"] = absmax
    group[f".quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return group


BASE = {
    "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "torch_dtype": "bfloat16",
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "hidden_act": "silu",
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "decoder_sparse_step": 1, "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64, "num_experts_per_tok": 4, "num_experts": 8, "norm_topk_prob": True,
    "mlp_only_layers": [], "tie_word_embeddings": False, "attention_bias": False, "full_attention_interval": 4,
    "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "rope_scaling": None, "eos_token_id": 1,
}

# name -> (changes of the config, dtype of linears, double quantization, fused experts, prompt length)
CASES = {
    "yarn-tied": ({"tie_word_embeddings": True, "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
                   "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
                  "nf4", False, False, 90),
    "top1-unnormalised": ({"num_experts_per_tok": 1, "norm_topk_prob": False, "num_attention_heads": 3,
                           "num_key_value_heads": 3, "partial_rotary_factor": 1.0, "head_dim": 16,
                           "full_attention_interval": 2, "vocab_size": 257}, "bf16", False, False, 37),
    "fused-fp4": ({"linear_num_key_heads": 1, "linear_num_value_heads": 4, "linear_value_head_dim": 32,
                   "linear_conv_kernel_dim": 2, "num_experts": 5, "num_experts_per_tok": 3,
                   "decoder_sparse_step": 2, "num_hidden_layers": 6}, "fp4", True, True, 65),
    "equal-heads-f16": ({"linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_key_head_dim": 24,
                         "linear_value_head_dim": 8, "linear_conv_kernel_dim": 3, "hidden_size": 96,
                         "shared_expert_intermediate_size": 32, "mlp_only_layers": [0, 2],
                         "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8,
                         "partial_rotary_factor": 0.5,
                         "layer_types": ["full_attention", "linear_attention", "full_attention",
                                         "linear_attention"]}, "f16", False, False, 50),
}


def make(name, folder):
    changes, kind, double, fused, length = CASES[name]
    config = {**BASE, **changes}
    rng = np.random.default_rng(sum(name.encode()))
    out = {}

    def plain(tensor, values):
        out[tensor] = f32_to_bf16(values)

    def linear(module, *shape, quantise=True):
        values = rng.normal(size=shape) * shape[-1] ** -0.5 * 1.5
        tensor = module if len(shape) == 3 else module + ".weight"
        if quantise and kind in ("nf4", "fp4"):
            out.update({tensor + suffix: array for suffix, array in quantize(values, kind, double).items()})
        elif quantise and kind == "f16":
            out[tensor] = values.astype(np.float16)
        else:
            plain(tensor, values)

    c = config
    width, heads, groups, head = (c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
    hk, hv = c["linear_num_key_heads"], c["linear_num_value_heads"]
    dk, dv = c["linear_key_head_dim"], c["linear_value_head_dim"]
    model = Model(config, {})
    plain("model.embed_tokens.weight", rng.normal(size=(c["vocab_size"], width)))
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        plain(p + "input_layernorm.weight", rng.normal(size=width) * 0.1)
        plain(p + "post_attention_layernorm.weight", rng.normal(size=width) * 0.1)
        if model.is_attention[i]:
            linear(p + "self_attn.q_proj", heads * 2 * head, width)
            linear(p + "self_attn.k_proj", groups * head, width)
            linear(p + "self_attn.v_proj", groups * head, width)
            linear(p + "self_attn.o_proj", width, heads * head)
            plain(p + "self_attn.q_norm.weight", rng.normal(size=head) * 0.1)
            plain(p + "self_attn.k_norm.weight", rng.normal(size=head) * 0.1)
        else:
            linear(p + "linear_attn.in_proj_qkvz", 2 * hk * dk + 2 * hv * dv, width)
            linear(p + "linear_attn.in_proj_ba", 2 * hv, width)
            linear(p + "linear_attn.out_proj", width, hv * dv)
            plain(p + "linear_attn.conv1d.weight",
                  rng.normal(size=(2 * hk * dk + hv * dv, 1, c["linear_conv_kernel_dim"])) * 0.5)
            plain(p + "linear_attn.norm.weight", 1 + rng.normal(size=dv) * 0.1)
            plain(p + "linear_attn.A_log", np.log(rng.uniform(0.5, 8, size=hv)))
            plain(p + "linear_attn.dt_bias", rng.normal(size=hv))
        if not model.has_experts[i]:
            for part, shape in (("gate", (c["intermediate_size"], width)), ("up", (c["intermediate_size"], width)),
                                ("down", (width, c["intermediate_size"]))):
                linear(p + f"mlp.{part}_proj", *shape)
            continue
        linear(p + "mlp.gate", c["num_experts"], width, quantise=False)
        linear(p + "mlp.shared_expert_gate", 1, width, quantise=False)
        inner = c["moe_intermediate_size"]
        if fused:
            linear(p + "mlp.experts.gate_up_proj", c["num_experts"], 2 * inner, width)
            linear(p + "mlp.experts.down_proj", c["num_experts"], width, inner)
        prefixes = [(p + "mlp.shared_expert.", c["shared_expert_intermediate_size"])]
        prefixes += [] if fused else [(p + f"mlp.experts.{e}.", inner) for e in range(c["num_experts"])]
        for prefix, size in prefixes:
            linear(prefix + "gate_proj", size, width)
            linear(prefix + "up_proj", size, width)
            linear(prefix + "down_proj", width, size)
    plain("model.norm.weight", rng.normal(size=width) * 0.1)
    if not c["tie_word_embeddings"]:
        linear("lm_head", c["vocab_size"], width, quantise=False)

    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    write_safetensors(os.path.join(folder, "model.safetensors"), out, {"format": "pt"})
    ids = rng.integers(2, c["vocab_size"], size=length)
    tensors, metadata = reference(*read_checkpoint(folder), ids)
    write_safetensors(os.path.join(folder, "reference.safetensors"), tensors, metadata)
    print(f"{folder}: nll {metadata['nll']}, greedy {tensors['decode_ids'].tolist()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="+", metavar="FOLDER")
    parser.add_argument("--make", nargs=2, metavar=("CASE", "FOLDER"))
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(CASES))
    if arguments.make:
        make(*arguments.make)
    if arguments.check:
        sys.exit(0 if all([check(folder) for folder in arguments.check]) else 1)


if __name__ == "__main__":
    main()
