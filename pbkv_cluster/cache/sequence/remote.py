"""Steps of active workflows that run on other workers: the record, the policies and the owners of nodes hear of them, too.

The blocks of such a step are its workflow's as far as this cache holds them. It reads them elsewhere, so none of
them has been used here.
"""

from collections.abc import Sequence

from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS
from pbkv_cluster.core.workflow.remote_steps import RemoteStepBegan, RemoteStepEnded, RemoteStepEvent, whole
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity
from pbkv_cluster.reuse.record.segment import Segment


class RemoteSteps:
    """Tells a cache of the steps that run elsewhere."""

    def __init__(self, tree: PrefixTree, workflows: ActiveWorkflows, paths: Paths, popularity: PrefixPopularity) -> None:
        """Args:
        tree: whose nodes the workflows own.
        workflows: that the steps belong to.
        paths: of the tree.
        popularity: is shown every prompt of which a record is kept.
        """
        self._tree = tree
        self._workflows = workflows
        self._paths = paths
        self._popularity = popularity

    def take(self, workflow: str, event: RemoteStepEvent, namespace: Namespace) -> int | None:
        """A step has begun or ended. Returns its position in the record; None: it was known, or cannot be understood."""
        if event.index <= self._workflows.heard(workflow):
            return None  # before the workflow is entered: it may have ended
        if isinstance(event, RemoteStepBegan):
            return self._began(workflow, event, namespace, event.at)
        return self._ended(workflow, event, namespace, event.at)

    def _began(self, workflow: str, event: RemoteStepBegan, namespace: Namespace, now: float) -> int | None:
        owner = self._workflows.enter(workflow, None, None, now)
        owner.heard = event.index
        position = blocks = 0
        if self._workflows.recorded:
            prompt = whole(owner.record.tokens(event.came_from), event)
            if prompt is None:
                return None
            blocks = len(prompt) // BLOCK_BYTES
            position = owner.record.begin(event.number, event.agent, prompt, blocks, now, self._popularity)
            self.follow(owner, self._tree.root(namespace), owner.record.path(position))
        owner.remote.add(event.number)
        owner.remote_root = self._tree.root(namespace)
        step = StepIdentity(namespace, workflow, event.agent, event.number, blocks * BLOCK_TOKENS, None, event.parent)
        self._workflows.step_began(owner, step, position, now)
        return position

    def _ended(self, workflow: str, event: RemoteStepEnded, namespace: Namespace, now: float) -> int | None:
        owner = self._workflows.find(workflow)
        if owner is None:
            return None
        owner.heard = event.index
        if event.number not in owner.remote:
            return None
        self._workflows.touch(owner)
        position = 0
        if self._workflows.recorded:
            found = owner.record.position(event.number)
            assert found is not None
            position = found
            if event.output:
                owner.record.write(position, event.output)
            if event.output or namespace.is_long:  # output may have taken it beyond the rotary switch
                self.follow(owner, self._tree.root(namespace), owner.record.path(position))
            owner.record.end(position, now)
        self._workflows.step_ended(owner, now)
        return position

    def follow(self, owner: Owner, root: Node, segments: Sequence[Segment]) -> None:
        """Has a workflow own the nodes along a path of its record, as far as this cache holds them, cut as the path is."""
        match = self._tree.match(root, b"".join(segment.tokens for segment in segments))
        path = match.path
        if path and match.last_blocks < path[-1].blocks:
            path[-1] = self._paths.split(path[-1], match.last_blocks)
        at, index = 0, 0
        for node in path:
            while True:
                while segments[index].stop <= at:
                    index += 1
                segment = segments[index]
                blocks = segment.stop - at
                if blocks >= node.blocks:
                    break
                upper = self._paths.split(node, blocks)
                self._own(owner, upper, segment, at)
                at += blocks
            self._own(owner, node, segment, at)
            at += node.blocks

    def _own(self, owner: Owner, node: Node, segment: Segment, at: int) -> None:
        if owner not in node.owners:
            owner.nodes[node] = None
        node.owners[owner] = segment
        node.writer = None
        if segment.prefix_stat is not None:
            node.entry = segment.prefix_stat.above(segment.stop - at - node.blocks)
