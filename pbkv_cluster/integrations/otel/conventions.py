"""Names from the OpenTelemetry semantic conventions for generative AI that workflow events need."""

OPERATION = "gen_ai.operation.name"
CONVERSATION = "gen_ai.conversation.id"
AGENT_NAME = "gen_ai.agent.name"
AGENT_ID = "gen_ai.agent.id"
WORKFLOW_NAME = "gen_ai.workflow.name"  # conventions up to 1.41; later ones use the agent's name
TOOL_NAME = "gen_ai.tool.name"
SERVICE_NAME = "service.name"  # of the resource
INPUT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")  # the second: conventions before 1.27, still in use
OUTPUT_TOKENS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
USER_MESSAGE_EVENT = "gen_ai.user.message"  # conventions up to 1.36 have an event for each message
CHOICE_EVENT = "gen_ai.choice"

INVOKE_WORKFLOW = "invoke_workflow"
EXECUTE_TOOL = "execute_tool"
STEPS = frozenset({"chat", "text_completion", "generate_content"})  # operations that call a model with a prompt
