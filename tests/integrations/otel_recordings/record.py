"""Records the spans that real instrumentations emit for one LangGraph application, as OTLP requests in JSON.

The tests read the recordings, so that they need neither LangGraph nor the instrumentations. To record again, in an environment
of its own:

    pip install langgraph==1.2.24 openinference-instrumentation-langchain==0.1.80 \
        opentelemetry-instrumentation-langchain==0.62.4 opentelemetry-exporter-otlp-proto-http
    python record.py openinference && python record.py traceloop

The application asks a planner, which calls a tool; then a team, a graph of its own with a researcher and a writer. Both turns
are of one thread. The chat model is a fake that counts 12 prompt and 3 output tokens. Each span is a request,
in the order of export. Long attributes that the receiver never reads are left out.
"""

import json
import sys
from pathlib import Path
from typing import Any, TypedDict

from google.protobuf.json_format import MessageToDict
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

HERE = Path(__file__).parent
UNREAD = ("input.value", "output.value", "entity.input", "entity.output", "task.input", "task.output", "arguments", "result")


class State(TypedDict, total=False):
    task: str
    answer: str


class Recorder(SpanExporter):
    """Keeps what an exporter of the SDK would send."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def export(self, spans: Any) -> SpanExportResult:
        request = encode_spans(spans)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    for attribute in [each for each in span.attributes if each.key.endswith(UNREAD)]:
                        span.attributes.remove(attribute)
        self.requests.append(MessageToDict(request))
        return SpanExportResult.SUCCESS


def model(answer: str) -> FakeMessagesListChatModel:
    usage = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
    return FakeMessagesListChatModel(responses=[AIMessage(content=answer, usage_metadata=usage)])


def search(query: str) -> str:
    """Searches for a query."""
    return f"found {query}"


def planner(state: State) -> State:
    # The prompt and the model are one sequence, so that there is a span between the node and its model call.
    prompt = ChatPromptTemplate.from_messages([("system", "You plan."), ("user", "{task}")])
    (prompt | model("First search.")).invoke({"task": state["task"]})
    return {"answer": tool(search).invoke({"query": "Rome"})}


def researcher(state: State) -> State:
    return {"answer": str(model("Rome has seven hills.").invoke(state["task"]).content)}


def writer(state: State) -> State:
    return {"answer": str(model("Go to Rome.").invoke(state["task"]).content)}


def application() -> Any:
    team = StateGraph(State)
    team.add_node("researcher", researcher)
    team.add_node("writer", writer)
    team.add_edge(START, "researcher")
    team.add_edge("researcher", "writer")
    team.add_edge("writer", END)
    graph = StateGraph(State)
    graph.add_node("planner", planner)
    graph.add_node("team", team.compile())
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "team")
    graph.add_edge("team", END)
    return graph.compile(checkpointer=InMemorySaver())


def instrument(name: str, provider: TracerProvider) -> None:
    if name == "openinference":
        from openinference.instrumentation.langchain import LangChainInstrumentor
    else:
        from opentelemetry.instrumentation.langchain import LangchainInstrumentor as LangChainInstrumentor
    LangChainInstrumentor().instrument(tracer_provider=provider)


def main(name: str) -> None:
    recorder = Recorder()
    provider = TracerProvider(resource=Resource({"service.name": "trips"}))
    provider.add_span_processor(SimpleSpanProcessor(recorder))
    instrument(name, provider)
    app = application()
    for task in ("Plan a trip.", "Now by train."):
        app.invoke({"task": task}, config={"configurable": {"thread_id": "thread-7"}})
    provider.shutdown()
    path = HERE / f"langgraph_{name}.json"
    path.write_text("[\n" + ",\n".join(json.dumps(each, separators=(",", ":")) for each in recorder.requests) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
