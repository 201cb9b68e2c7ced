-- net.lua - a TCP reset of the client's connection
--
-- nginx closes politely: TLS close_notify, then FIN.  Here the socket itself is
-- found by its two ports and disconnected, upon which the kernel sends a reset
-- and drops what has not been sent.  All streams of an HTTP/2 connection die.

local ffi = require "ffi"

ffi.cdef [[
int getpeername(int fd, void *addr, unsigned int *len);
int getsockname(int fd, void *addr, unsigned int *len);
int connect(int fd, const void *addr, unsigned int len);
]]

local M = {}
local C = ffi.C
local MAX_FD = 2048				-- well above worker_connections
local addr = ffi.new("uint8_t[128]")
local len = ffi.new("unsigned int[1]")
local unspec = ffi.new("uint8_t[16]")	-- sa_family 0: AF_UNSPEC

-- IPv4 and IPv6 addresses hold the port at the same place.
local function port(get, fd)
	len[0] = 128
	if get(fd, addr, len) ~= 0 or len[0] < 4 then
		return nil
	end
	return addr[2] * 256 + addr[3]
end

function M.reset()
	local peer = tonumber(ngx.var.remote_port)
	local own = tonumber(ngx.var.server_port)

	for fd = 3, MAX_FD do
		if port(C.getpeername, fd) == peer and port(C.getsockname, fd) == own then
			C.connect(fd, unspec, 16)
			return
		end
	end
	-- Not found: another request of the same connection has just reset it.
end

return M
