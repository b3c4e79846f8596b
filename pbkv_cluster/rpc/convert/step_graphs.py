"""Step graphs."""

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode
from pbkv_cluster.rpc.v1 import types_pb2

_TO_WIRE: dict[Join, types_pb2.StepGraph.Join] = {
    Join.AND: types_pb2.StepGraph.JOIN_AND,
    Join.OR: types_pb2.StepGraph.JOIN_OR,
}
_FROM_WIRE = {wire: join for join, wire in _TO_WIRE.items()} | {types_pb2.StepGraph.JOIN_UNSPECIFIED: Join.AND}


def step_graph_to_wire(graph: StepGraph) -> types_pb2.StepGraph:
    nodes = [
        types_pb2.StepGraph.Node(agent_id=node.agent, predecessors=node.predecessors, join=_TO_WIRE[node.join])
        for node in graph.nodes
    ]
    return types_pb2.StepGraph(nodes=nodes)


def step_graph_from_wire(message: types_pb2.StepGraph) -> StepGraph:
    """The step graph of a message.

    Raises:
        InvalidArgument: this version does not know a kind of join, or the nodes are not a graph.
    """
    nodes = []
    # Each name is kept once, however many agents follow it.
    names = {node.agent_id: node.agent_id for node in message.nodes}
    for position, node in enumerate(message.nodes):
        join = _FROM_WIRE.get(node.join)
        if join is None:
            raise InvalidArgument(f"step_graph.nodes[{position}].join", f"{node.join} is not a kind of join")
        predecessors = tuple(names.get(agent, agent) for agent in node.predecessors)
        nodes.append(StepNode(names[node.agent_id], predecessors, join))
    return StepGraph(tuple(nodes))
