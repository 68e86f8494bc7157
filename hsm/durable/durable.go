// Package durable writes small files so that they are whole, and on disk, when the
// call returns: what keys, documents and daemons' states are kept with.
//
// Errors name the file, what was tried and the system's reason, as package os does.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace makes data the content of the file at path, in the place of what was there
// if anything was. Whoever reads at any moment, and whoever looks after a crash, finds
// all of the old content or all of the new. After an error the old one stands, unless
// only the directory could not be synced: then it is the new one, until power fails at
// least. The directory must be there. A kill may leave path.*.tmp behind.
func Replace(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	if err = errors.Join(tmp.Chmod(mode), fill(tmp, data)); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return SyncDir(filepath.Dir(path))
}

// Create writes a file that is not there: the error is fs.ErrExist if it is, and the
// file stays as it was. After any other error there is none. A kill, or power that
// fails meanwhile, may leave a part of it. The directory must be there; mode is before
// the umask.
func Create(path string, data []byte, mode fs.FileMode) error {
	// Not a hard link from a temporary file: sticks that carry documents have file
	// systems without links.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if err = errors.Join(fill(f, data), SyncDir(filepath.Dir(path))); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Remove removes a file for good.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes durable which names a directory has.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
