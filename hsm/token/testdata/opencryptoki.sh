# Runs opencryptoki's slot daemon with one soft token, in the mount and IPC
# namespaces that it is started in, so that nothing of the host is touched.
set -e
mount --make-rprivate /
for dir in /etc/opencryptoki /var/lib/opencryptoki /run /dev/shm; do
	mount -t tmpfs -o mode=755 tmpfs $dir
done
mkdir -p /run/lock/opencryptoki/swtok /var/lib/opencryptoki/swtok/TOK_OBJ
chgrp -R pkcs11 /run/lock/opencryptoki /var/lib/opencryptoki
chmod -R g+rwx /run/lock/opencryptoki /var/lib/opencryptoki
printf 'version opencryptoki-3.1\nslot 0\n{\nstdll = libpkcs11_sw.so\n}\n' >/etc/opencryptoki/opencryptoki.conf
exec pkcsslotd -f
