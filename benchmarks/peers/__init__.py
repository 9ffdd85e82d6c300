"""What people write who do without Depesche, as well as they would: what our figures stand beside.

fastapi_receiver.py   webhooks in: FastAPI, uvicorn, aiokafka
consume_produce.py    webhook to bot: a handler that produces, a transactional loop, a consumer that posts
"""
