-- What is sent (`-- N` sends N bytes with every request), and what wrk measured, as one line of JSON at the end of its
-- output. Nothing here runs per request.
function init(arguments)
  local bytes = tonumber(arguments[1] or 0)
  if bytes > 0 then
    wrk.method = "POST"
    wrk.body = string.rep("0", bytes)
  end
end

function done(summary, latency, requests)
  local failed = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "duration_us": %d, "errors": %d, "p50_us": %d, "p90_us": %d, "p99_us": %d, "p999_us": %d}\n',
    summary.requests, summary.duration,
    failed.connect + failed.read + failed.write + failed.status + failed.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9)))
end
