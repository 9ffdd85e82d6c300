"""What people write who do without Depesche, as well as they would: what our figures stand beside.

fastapi_receiver.py   webhooks in: FastAPI, uvicorn, aiokafka
"""
