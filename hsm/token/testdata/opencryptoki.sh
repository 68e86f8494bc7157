# Makes a root for opencryptoki at /mnt, in the mount and IPC namespaces that it
# is started in: programs and libraries from UNPACKED, Debian's packages as make
# unpacks them, and all that is written in memory. Nothing of the host is
# touched. It says when that is done, and ends with its standard input.
#
# usage: opencryptoki.sh UNPACKED HELPER
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
cp "$2" /mnt/keyturn-token
cd /mnt
mkdir -p usr proc dev tmp etc/opencryptoki run/opencryptoki var/log/opencryptoki \
	var/lock/opencryptoki/swtok var/lib/opencryptoki/swtok/TOK_OBJ
ln -s usr/lib usr/lib64 .
ln -s ../run var/run
mount --bind "$1/usr" usr
mount --rbind /proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs dev/shm
cp "$1/etc/opencryptoki/strength.conf" etc/opencryptoki/
printf 'version opencryptoki-3.23\nslot 0\n{\nstdll = libpkcs11_sw.so\ntokversion = 3.12\n}\n' >etc/opencryptoki/opencryptoki.conf
echo 'pkcs11:x:0:root' >etc/group
printf 'root:x:0:0:::\npkcsslotd:x:60123:0:::\n' >etc/passwd
chown 60123 run/opencryptoki
chmod -R g+rwX,o= etc/opencryptoki var/log/opencryptoki var/lock/opencryptoki var/lib/opencryptoki
chmod 640 etc/opencryptoki/*
echo ready
exec cat
