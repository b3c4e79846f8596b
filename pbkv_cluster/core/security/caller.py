"""Who has made the call that runs now, and what that lets it do.

Whatever checks a call's API key, a gRPC server or an HTTP one, notes the caller in the call's context. What belongs to a tenant
is checked where it is found, so that no front door can forget to.
"""

from contextvars import ContextVar, Token
from dataclasses import dataclass

from pbkv_cluster.core.errors import PermissionDenied


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant; or, without one, an operator or a member of the cluster, who may do everything."""

    tenant: str = ""

    @property
    def is_operator(self) -> bool:
        return not self.tenant

    def tenant_of(self, asked: str) -> str:
        """The tenant of a request that asks for one; empty: it asks for none.

        Raises:
            PermissionDenied: it is not the caller's own.
        """
        if self.tenant and asked not in ("", self.tenant):
            raise PermissionDenied(f"tenant: this API key is that of another tenant than {asked!r}")
        return self.tenant or asked

    def may_use(self, tenant: str) -> bool:
        """Whether what belongs to a tenant may be used by the caller."""
        return self.tenant in ("", tenant)

    def check_operator(self, what: str) -> None:
        """Raises:
        PermissionDenied: the caller is a tenant; `what` only operators may do is named.
        """
        if not self.is_operator:
            raise PermissionDenied(f"{what} needs the API key of an operator")


OPERATOR = Caller()

_current: ContextVar[Caller] = ContextVar("caller", default=OPERATOR)


def current_caller() -> Caller:
    """Who has made the call that runs now. What runs by itself, and every call where no keys are asked for, is unrestricted."""
    return _current.get()


def note_caller(caller: Caller) -> Token[Caller]:
    """Notes who has made the call that runs in this task; tasks that it starts inherit it."""
    return _current.set(caller)
