"""The steps that wait for admission: `shares.py` between tenants, `order.py` among one tenant's own, `step_queue.py` both."""
