"""Mistakes in what model families compute, alike on every rank of every layout. See `mutants.py`, which runs them."""


def rotate_one_position_late_in_decode():
    from gpt_parallel.engine.model.rotary import Rotary

    def late(self, step):
        if step.decode:
            moved = {"position": None if step.position is None else step.position + 1}
            moved["positions"] = None if step.positions is None else step.positions + 1
            step = step._replace(**moved)
        return rotate(self, step)

    rotate = Rotary.__call__
    Rotary.__call__ = late


def rotate_without_scaling():
    from gpt_parallel.engine.model import rotary

    def plain(rope):
        return frequencies(rope.model_copy(update={"kind": "default"}))

    frequencies = rotary.inverse_frequencies
    rotary.inverse_frequencies = plain


def attend_to_the_next_heads_keys():
    """Of the next key and value head, as if query heads were grouped otherwise."""
    from gpt_parallel.engine.model import rotary_attention

    def crossed(q, k, v, **options):
        return attend(q, k.roll(1, 1), v.roll(1, 1), **options)

    attend = rotary_attention.attend
    rotary_attention.attend = crossed


def normalise_without_weight():
    import torch

    from gpt_parallel.engine.model.layers import RmsNorm

    RmsNorm.__call__ = lambda self, x: torch.rms_norm(x, self._shape, None, self._epsilon)


def swap_gate_and_up():
    from gpt_parallel.engine.model.llama import Mlp

    def swapped(self, x):
        up, gate = self.gate_up(x).chunk(2, -1)
        return self._activation(gate) * up

    Mlp.__call__ = swapped


def see_one_token_beyond_the_window():
    from gpt_parallel.engine.model import llama

    def wider(step, window, device):
        return reach_of(step, None if window is None else window + 1, device)

    reach_of = llama.reach_of
    llama.reach_of = wider


def tie_the_head():
    """The token table in place of the head's own weights."""
    from gpt_parallel.engine.model.decoder import Decoder

    def table(self):
        return self.embedding.weight[self.part.vocabulary.start : self.part.vocabulary.stop]

    Decoder._head_weight = table


def untie_the_head():
    """Weights of its own in place of the token table."""
    from gpt_parallel.engine.model.decoder import Decoder

    def own(self):
        return weight(self).flip(-1)

    weight = Decoder._head_weight
    Decoder._head_weight = own


def rotate_before_the_norms_of_queries_and_keys():
    from gpt_parallel.engine.model.rotary import Rotation
    from gpt_parallel.engine.model.rotary_attention import RotaryAttention

    owners, turn = [], Rotation.__call__

    def remember(self, turning):
        owners.append(self)
        return turning

    def late(self, x):
        return normed(owners.pop(), turn(self, x))

    normed = RotaryAttention._normed
    RotaryAttention._normed, Rotation.__call__ = remember, late


def forget_the_bias_of_queries_and_keys():
    from gpt_parallel.engine.model.rotary_attention import RotaryAttention

    def without(self, x, *arguments):
        if self.qkv.bias is not None:
            self.qkv.bias.zero_()
        return call(self, x, *arguments)

    call = RotaryAttention.__call__
    RotaryAttention.__call__ = without


def scale_all_layers_alike():
    from gpt_parallel.engine.model import gpt2

    scale = gpt2._scale
    gpt2._scale = lambda architecture, layer: scale(architecture, 0)


def let_the_mlp_read_what_attention_wrote():
    from gpt_parallel.engine.model import gpt_neox

    def in_turn(self, *arguments):
        make(self, *arguments)
        self._is_parallel = False

    make = gpt_neox.Block.__init__
    gpt_neox.Block.__init__ = in_turn
