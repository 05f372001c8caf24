"""The place of a rank in the mesh: pipeline stage, replica and tensor shard."""

from dataclasses import dataclass

from gpt_parallel.schema.run import MeshSpec


@dataclass(frozen=True)
class Mesh:
    """A rank's place in a (pp, dp, tp) grid, tp innermost."""

    sizes: MeshSpec
    rank: int

    @property
    def shard(self) -> int:
        return self.rank % self.sizes.tp

    @property
    def replica(self) -> int:
        return self.rank // self.sizes.tp % self.sizes.dp

    @property
    def stage(self) -> int:
        return self.rank // (self.sizes.tp * self.sizes.dp)

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.sizes.pp - 1

    def rank_at(self, *, stage: int, replica: int, shard: int) -> int:
        return (stage * self.sizes.dp + replica) * self.sizes.tp + shard

    def peer(self, stage: int) -> int:
        """The rank of this replica and shard in another stage."""
        return self.rank_at(stage=stage, replica=self.replica, shard=self.shard)

    def receiver(self, channel: int) -> int:
        """The rank that this one sends to: on channel 0 its peer in the next stage, on channel 1 in the first."""
        return self.peer(self.stage + 1 if channel == 0 else 0)

    def sender(self, channel: int) -> int:
        """The rank that this one receives from: on channel 0 its peer in the stage before, on channel 1 in the last."""
        return self.peer(self.stage - 1 if channel == 0 else self.sizes.pp - 1)

    def tensor_group(self) -> list[int]:
        """The ranks of this rank's tensor-parallel group, itself included."""
        return [self.rank_at(stage=self.stage, replica=self.replica, shard=shard) for shard in range(self.sizes.tp)]

    def tensor_groups(self) -> list[list[int]]:
        """The ranks of every tensor-parallel group, in an order all ranks agree on."""
        return [
            [self.rank_at(stage=stage, replica=replica, shard=shard) for shard in range(self.sizes.tp)]
            for stage in range(self.sizes.pp)
            for replica in range(self.sizes.dp)
        ]
