#!/bin/busybox sh
# The first process of a measured machine: it starts the agent that the image
# holds, and answers on the second serial port. That port is a root shell for
# the test that owns the machine; a site's image has no such thing.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
# The charter's coordinator is at localhost: the host that runs this machine.
echo 10.0.2.2 localhost >/etc/hosts
mount /dev/vdb /data
mkdir -p /run/keyturn
if [ -e /data/agent.yaml ]; then
	keyturn-agent enrolment --config /data/agent.yaml --out /data/enrolment.json
	keyturn-agent run --config /data/agent.yaml &
	agent=$!
fi
# On a busy host the kernel may have given the TPM up: it waits 0.75 s at most.
state=ready
[ -e /dev/tpmrm0 ] || state=no-tpm
# One command a line; answered by its output in base64, a line "err", its errors, and a line with its end.
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
printf '\n%s\n' "$state" >&3
while read -r line <&3; do
	[ "$line" != poweroff ] || break
	(eval "$line") </dev/null >/tmp/out 2>/tmp/err
	code=$?
	{ base64 /tmp/out; echo err; base64 /tmp/err; echo "end $code"; } >&3
done
if [ -n "$agent" ]; then kill -TERM "$agent" && wait "$agent"; fi
umount /data
poweroff -f
