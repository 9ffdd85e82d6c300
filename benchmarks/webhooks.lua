-- Webhooks for wrk out of a file: each request of it once, signed beforehand, all of one length.
-- Arguments: the file, a request's length, how many. Says "began" with the first, "drained" when all were answered.

local file, length, left
local tried = false
local answered, ok, all = 0, 0, 0
local never = 3600 * 1000 -- ms

function init(args)
  file = assert(io.open(args[1], "rb"))
  length, all = tonumber(args[2]), tonumber(args[3])
  left = all
end

function delay()
  return left > 0 and 0 or never
end

function request()
  if not tried then -- wrk looks at one before it connects
    tried = true
    local first = file:read(length)
    file:seek("set")
    return first
  end
  if left == all then
    io.write("began\n")
    io.flush()
  end
  left = left - 1
  return file:read(length)
end

function response(status)
  answered = answered + 1
  if status == 200 then ok = ok + 1 end
  if answered == all then
    io.write("drained " .. ok .. "\n")
    io.flush()
  end
end

function done(_, latency, _)
  io.write(string.format("latency %d %d\n", latency:percentile(50), latency:percentile(99)))
  io.flush()
end
